"""Serve a store over HTTP."""

from checkpoint.server.access import Access as Access
from checkpoint.server.access import new_token as new_token
from checkpoint.server.app import create_app as create_app
from checkpoint.server.serving import serve as serve
from checkpoint.server.ui import Shown as Shown
from checkpoint.server.vendor import DEFAULTS as DEFAULTS
from checkpoint.server.vendor import Switches as Switches
