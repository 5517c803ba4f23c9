"""The studies by name."""

from __future__ import annotations

from typing import Any

from cnninv_jax.experiments.studies import Study


def studies() -> dict[str, Study[Any]]:
    """Return the studies by name, paper after paper, in its order."""
    from cnninv_jax.experiments.bounds import GILBERT_BOUNDS
    from cnninv_jax.experiments.coherence_tables import TABLE4, TABLE6
    from cnninv_jax.experiments.constant_study import CONSTANT
    from cnninv_jax.experiments.crelu_invariance import CRELU_INVARIANCE
    from cnninv_jax.experiments.crelu_pairing import CRELU_PAIRING
    from cnninv_jax.experiments.crelu_rademacher import CRELU_RADEMACHER
    from cnninv_jax.experiments.crelu_ratio import CRELU_RATIO
    from cnninv_jax.experiments.crelu_reconstruction import CRELU_RECONSTRUCTION
    from cnninv_jax.experiments.crelu_table1 import CRELU_TABLE1
    from cnninv_jax.experiments.dcn_channels import DCN_CHANNELS
    from cnninv_jax.experiments.dcn_depth import DCN_DEPTH
    from cnninv_jax.experiments.dcn_kernel import DCN_KERNEL
    from cnninv_jax.experiments.dcn_laws import DCN_LAWS
    from cnninv_jax.experiments.dcn_rates import DCN_RATES
    from cnninv_jax.experiments.dcn_style import DCN_STYLE
    from cnninv_jax.experiments.dcn_train import DCN_TRAIN
    from cnninv_jax.experiments.dcn_values import DCN_VALUES
    from cnninv_jax.experiments.dcn_width import DCN_WIDTH
    from cnninv_jax.experiments.dcsc_depth import DCSC_DEPTH
    from cnninv_jax.experiments.dcsc_design import DCSC_DESIGN
    from cnninv_jax.experiments.dcsc_pursuits import DCSC_PURSUITS
    from cnninv_jax.experiments.dcsc_rare import DCSC_RARE
    from cnninv_jax.experiments.dcsc_recovery import DCSC_RECOVERY
    from cnninv_jax.experiments.dcsc_relu import DCSC_RELU
    from cnninv_jax.experiments.dcsc_scaling import DCSC_SCALING
    from cnninv_jax.experiments.fig3 import FIG3
    from cnninv_jax.experiments.gilbert_table1 import TABLE1
    from cnninv_jax.experiments.phase import PHASE
    from cnninv_jax.experiments.sparsity_tables import TABLE2, TABLE7
    from cnninv_jax.experiments.table3 import TABLE3

    gilbert = (TABLE1, FIG3, TABLE2, TABLE3, TABLE4, TABLE6, TABLE7, CONSTANT, GILBERT_BOUNDS, PHASE)
    random_dcn = (DCN_DEPTH, DCN_WIDTH, DCN_CHANNELS, DCN_KERNEL, DCN_RATES, DCN_VALUES, DCN_LAWS, DCN_TRAIN, DCN_STYLE)
    murray = (DCSC_RECOVERY, DCSC_SCALING, DCSC_DEPTH, DCSC_RELU, DCSC_RARE, DCSC_PURSUITS, DCSC_DESIGN)
    shang = (CRELU_PAIRING, CRELU_RECONSTRUCTION, CRELU_RATIO, CRELU_INVARIANCE, CRELU_RADEMACHER, CRELU_TABLE1)
    return {study.name: study for study in (*gilbert, *random_dcn, *murray, *shang)}


def find_study(name: str) -> Study[Any]:
    """Return one study.

    Raises:
        ValueError: this version knows no study of that name.
    """
    from cnninv_jax.experiments.checkpoint import CHECKPOINT

    known = {**studies(), CHECKPOINT.name: CHECKPOINT}
    if name not in known:
        raise ValueError(f"expected a study out of {', '.join(known)}, got {name!r}; use the version that began it")
    return known[name]
