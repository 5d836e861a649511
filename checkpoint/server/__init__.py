"""Serving a store over HTTP: the vendor's API."""

from checkpoint.server.vendor import DEFAULTS as DEFAULTS
from checkpoint.server.vendor import Switches as Switches
from checkpoint.server.vendor import create_app as create_app
from checkpoint.server.vendor import serve as serve
