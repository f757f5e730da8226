"""Runs that are killed at a step."""

from __future__ import annotations

import pytest
from failing import Killed


@pytest.fixture
def kill(monkeypatch):
    """Runs a function until the learner's step `at`, and tells which steps were done."""

    def run(learner, at, function):
        done = []
        step = learner.step

        def dying(self, number):
            if number == at:
                raise Killed
            done.append(number)
            return step(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(learner, "step", dying)
            if at is None:
                function()
            else:
                with pytest.raises(Killed):
                    function()
        return done

    return run
