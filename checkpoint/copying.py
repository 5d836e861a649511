"""Copy or move namespaces between stores: the public path of `checkpoint.neighbours.copying`."""

from checkpoint.neighbours.copying import Copy as Copy
from checkpoint.neighbours.copying import copy as copy
from checkpoint.neighbours.copying import move as move
from checkpoint.neighbours.copying import namespaces as namespaces
from checkpoint.neighbours.copying import plan as plan
