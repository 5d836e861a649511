"""Work with other tools (Singer, Airbyte, Meltano, Airflow), and copy namespaces between stores."""
