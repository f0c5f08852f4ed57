"""How a recipe ends where its input is wrong: one line a fault, of whichever process found it."""

from __future__ import annotations

import pytest

from scale_vqa_eval.errors import InputError, Problem
from training_recipes import run


@pytest.mark.parametrize("rank, said", [("0", "error: row 3:"), ("5", "error: process 5: row 3:")])
def test_a_problem_is_told_by_the_process_that_found_it(rank, said, monkeypatch, capsys):
    waited = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(run.time, "sleep", waited.append)

    def main():
        raise InputError(Problem("row 3", "a complete image", "a part of one", "restore the original"))

    with pytest.raises(SystemExit) as stopped:
        run.report_errors(main)
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith(said)
    assert waited == ([] if rank == "0" else [run.OTHERS_WAIT])  # the first process speaks first
