"""Read and write state documents of Singer, Airbyte and Meltano, and find the positions in other tools' state.

The public path of `checkpoint.neighbours.documents` and `checkpoint.neighbours.positions`.
"""

from checkpoint.neighbours.documents import Cursors as Cursors
from checkpoint.neighbours.documents import Format as Format
from checkpoint.neighbours.documents import detect as detect
from checkpoint.neighbours.documents import dump as dump
from checkpoint.neighbours.documents import key_of as key_of
from checkpoint.neighbours.documents import load as load
from checkpoint.neighbours.documents import name_of as name_of
from checkpoint.neighbours.documents import streams as streams
from checkpoint.neighbours.positions import Tool as Tool
from checkpoint.neighbours.positions import positions as positions
