"""Deep convolutional sparse coding: when does a forward pass recover the activation path? (Murray 2018)"""

from cnninv_jax.dcsc.model import Layer as Layer
from cnninv_jax.dcsc.model import Layers as Layers
from cnninv_jax.dcsc.model import draw_signs as draw_signs
from cnninv_jax.dcsc.model import layers as layers
from cnninv_jax.dcsc.model import respond as respond
from cnninv_jax.dcsc.model import reverse as reverse
from cnninv_jax.dcsc.model import reverse_pass as reverse_pass
from cnninv_jax.dcsc.model import shapes as shapes
from cnninv_jax.dcsc.paths import PathOutcome as PathOutcome
from cnninv_jax.dcsc.paths import PathTables as PathTables
from cnninv_jax.dcsc.paths import path_outcome as path_outcome
from cnninv_jax.dcsc.paths import path_signs as path_signs
from cnninv_jax.dcsc.paths import path_tables as path_tables

__all__ = [
    "Layer",
    "Layers",
    "PathOutcome",
    "PathTables",
    "draw_signs",
    "layers",
    "path_outcome",
    "path_signs",
    "path_tables",
    "respond",
    "reverse",
    "reverse_pass",
    "shapes",
]
