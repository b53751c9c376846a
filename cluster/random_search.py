"""Random search over settings with Ray Tune: several trials at a time, until a time budget is used up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asymdiffrec.cluster.launch import stay_on_loopback
from asymdiffrec.cluster.parallel_tasks import call_in_folder

Settings = Mapping[str, Any]

MAX_TRIALS = 10_000
"""Maximum number of trials, which Ray Tune requires; the time budget ends the search earlier"""


def random_search(
    objective: Callable[[Settings], float],
    space: Mapping[str, Sequence[Any]],
    first: Sequence[Settings],
    seconds: float,
    parallel: int,
    address: str | None,
    seed: int = 0,
    on_result: Callable[[Settings, float], None] = lambda settings, value: None,
) -> list[tuple[dict[str, Any], float]]:
    """Run trials; return the settings of each trial with the value of the objective. A smaller value is better.

    objective: a deterministic, picklable function that returns the value of settings.
    space: the choices for each setting, by the name of the setting.
    first: settings to try first, with values from `space`; random settings follow until `seconds` have passed.
    parallel: the number of trials at a time, each with one CPU.
    address: the address of a Ray cluster; None: start a cluster on this host.
    on_result: called with the settings and the value of each trial when it ends.

    The result does not contain trials that failed or still ran at the end of the time.
    """
    if address is None:
        stay_on_loopback()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the old output can be switched off
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # these callbacks write files that nobody reads
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    from asymdiffrec.cluster.ray_connection import ray_connection

    folder = os.getcwd()
    choices = {name: list(values) for name, values in space.items()}

    def settings_of(indices: Mapping[str, int]) -> dict[str, Any]:
        """Return the settings, given the index of the choice of each setting.

        Tune searches over indices, because it would treat a choice that is a mapping as a part of the search space.
        """
        return {name: choices[name][index] for name, index in indices.items()}

    class Trial(tune.Trainable):
        """A trial with one step. A process runs many trials one after another, because importing torch is slow."""

        def setup(self, config: dict[str, Any]) -> None:
            self.indices = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.indices = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {"value": call_in_folder(objective, settings_of(self.indices), folder), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing: a trial has one step."""

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            """Load nothing."""

    class ResultCallback(tune.Callback):
        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune pickles its callbacks; `on_result` may not be picklable

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            on_result(settings_of(trial.config), result["value"])

    with ray_connection(address, parallel), tempfile.TemporaryDirectory(prefix="asymdiffrec-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(Trial, {"cpu": 1}),
            param_space={name: tune.choice(range(len(values))) for name, values in choices.items()},
            tune_config=tune.TuneConfig(
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=[
                        {name: choices[name].index(value) for name, value in settings.items()} for settings in first
                    ],
                    random_state=seed,
                    max_concurrent=parallel,
                ),
                num_samples=MAX_TRIALS,
                time_budget_s=seconds,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0, callbacks=[ResultCallback()]),
        )
        results = tuner.fit()
    return [
        (settings_of(result.config), float(result.metrics["value"]))
        for result in results
        if result.config is not None and result.metrics and "value" in result.metrics and not result.error
    ]
