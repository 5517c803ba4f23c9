"""Deep convolutional sparse coding: when does a forward pass recover the activation path? (Murray 2018)"""

from cnninv_jax.dcsc.atoms import sparse_filters as sparse_filters
from cnninv_jax.dcsc.bounds import ProbabilisticBound as ProbabilisticBound
from cnninv_jax.dcsc.bounds import SparsityLimit as SparsityLimit
from cnninv_jax.dcsc.bounds import UniformBound as UniformBound
from cnninv_jax.dcsc.bounds import critical_sparsity as critical_sparsity
from cnninv_jax.dcsc.bounds import probabilistic_bound as probabilistic_bound
from cnninv_jax.dcsc.bounds import propagated_noise as propagated_noise
from cnninv_jax.dcsc.bounds import sparsity_limit as sparsity_limit
from cnninv_jax.dcsc.bounds import uniform_bound as uniform_bound
from cnninv_jax.dcsc.design import Design as Design
from cnninv_jax.dcsc.design import design as design
from cnninv_jax.dcsc.design import filters_of_coherence as filters_of_coherence
from cnninv_jax.dcsc.forward import Forward as Forward
from cnninv_jax.dcsc.forward import compare as compare
from cnninv_jax.dcsc.forward import default_thresholds as default_thresholds
from cnninv_jax.dcsc.forward import forward as forward
from cnninv_jax.dcsc.forward import support as support
from cnninv_jax.dcsc.forward import supports as supports
from cnninv_jax.dcsc.generate import Measured as Measured
from cnninv_jax.dcsc.generate import Sample as Sample
from cnninv_jax.dcsc.generate import coherences as coherences
from cnninv_jax.dcsc.generate import generate as generate
from cnninv_jax.dcsc.generate import measure as measure
from cnninv_jax.dcsc.layered import Layered as Layered
from cnninv_jax.dcsc.layered import layered_basis_pursuit as layered_basis_pursuit
from cnninv_jax.dcsc.layered import layered_iht as layered_iht
from cnninv_jax.dcsc.model import Layer as Layer
from cnninv_jax.dcsc.model import Layers as Layers
from cnninv_jax.dcsc.model import draw_signs as draw_signs
from cnninv_jax.dcsc.model import layers as layers
from cnninv_jax.dcsc.model import respond as respond
from cnninv_jax.dcsc.model import reverse as reverse
from cnninv_jax.dcsc.model import reverse_pass as reverse_pass
from cnninv_jax.dcsc.model import shapes as shapes
from cnninv_jax.dcsc.noise import aligned_noise as aligned_noise
from cnninv_jax.dcsc.noise import noise as noise
from cnninv_jax.dcsc.orthogonal import most_orthogonal as most_orthogonal
from cnninv_jax.dcsc.orthogonal import orthogonal_filters as orthogonal_filters
from cnninv_jax.dcsc.paths import PathOutcome as PathOutcome
from cnninv_jax.dcsc.paths import PathTables as PathTables
from cnninv_jax.dcsc.paths import path_outcome as path_outcome
from cnninv_jax.dcsc.paths import path_score as path_score
from cnninv_jax.dcsc.paths import path_signs as path_signs
from cnninv_jax.dcsc.paths import path_tables as path_tables
from cnninv_jax.dcsc.paths import signs_of_latent as signs_of_latent

__all__ = [
    "Design",
    "Forward",
    "Layer",
    "Layered",
    "Layers",
    "Measured",
    "PathOutcome",
    "PathTables",
    "ProbabilisticBound",
    "Sample",
    "SparsityLimit",
    "UniformBound",
    "aligned_noise",
    "coherences",
    "compare",
    "critical_sparsity",
    "default_thresholds",
    "design",
    "draw_signs",
    "filters_of_coherence",
    "forward",
    "generate",
    "layered_basis_pursuit",
    "layered_iht",
    "layers",
    "measure",
    "most_orthogonal",
    "noise",
    "orthogonal_filters",
    "path_outcome",
    "path_score",
    "path_signs",
    "path_tables",
    "probabilistic_bound",
    "propagated_noise",
    "respond",
    "reverse",
    "reverse_pass",
    "shapes",
    "signs_of_latent",
    "sparse_filters",
    "sparsity_limit",
    "support",
    "supports",
    "uniform_bound",
]
