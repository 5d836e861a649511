"""Documents of Singer, Airbyte, Meltano, and plain JSON: the public path of `checkpoint.neighbours.documents`."""

from checkpoint.neighbours.documents import Cursors as Cursors
from checkpoint.neighbours.documents import Format as Format
from checkpoint.neighbours.documents import detect as detect
from checkpoint.neighbours.documents import dump as dump
from checkpoint.neighbours.documents import key_of as key_of
from checkpoint.neighbours.documents import load as load
from checkpoint.neighbours.documents import name_of as name_of
from checkpoint.neighbours.documents import streams as streams
