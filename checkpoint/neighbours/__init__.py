"""Formats and interfaces of other tools: Singer, Airbyte, Meltano, and copies between stores."""
