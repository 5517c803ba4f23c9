"""The command line as tests call it."""

import os

from cnninv_jax.cli import main


def refused(capsys, *arguments, leaves=()):
    """Run, expect a refusal that leaves behind nothing but what ``leaves`` names, and return its one sentence."""
    capsys.readouterr()
    before = sorted([*os.listdir(), *leaves])
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("cnninv: error: ")
    assert "Traceback" not in err
    assert sorted(os.listdir()) == before
    return err
