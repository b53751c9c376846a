"""A random search over settings under Ray Tune: several trials side by side, until the time is over."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asymdiffrec.cluster.launch import stay_on_loopback
from asymdiffrec.cluster.parallel_tasks import in_folder

Settings = Mapping[str, Any]
MOST = 10_000
"""Trials; the budget ends the search before"""


def search(
    judge: Callable[[Settings], float],
    space: Mapping[str, Sequence[Any]],
    first: Sequence[Settings],
    seconds: float,
    at_once: int,
    address: str | None,
    seed: int = 0,
    tell: Callable[[Settings, float], None] = lambda settings, value: None,
) -> list[tuple[dict[str, Any], float]]:
    """Settings with what `judge` said of them, smaller being better.

    Of those tried `first`, and then of random ones from `space`, which has the choices for each name (those of `first`
    among them), until `seconds` are over. `tell` hears of each as it ends.
    What `judge` makes of the same settings must be the same, and it must pickle. A trial that fails, or is still going
    when the time is over, is left out.
    """
    if address is None:
        stay_on_loopback()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old one says nothing where nothing is asked for
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # files of what is returned here
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    from asymdiffrec.cluster.ray_cluster import connected

    folder = os.getcwd()
    names = {name: list(choices) for name, choices in space.items()}

    def chosen(places: Mapping[str, int]) -> dict[str, Any]:
        """Tune gets places of choices: a choice that is a mapping would be taken for more of the space."""
        return {name: names[name][place] for name, place in places.items()}

    class Trial(tune.Trainable):
        """One after the other in one process: it takes seconds to import torch."""

        def setup(self, config: dict[str, Any]) -> None:
            self.settings = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.settings = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {"value": in_folder(judge, chosen(self.settings), folder), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """There is nothing to keep: a trial is one step."""

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            """As there is none."""

    class Told(tune.Callback):
        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune writes its callbacks down, and ours knows what cannot be

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            tell(chosen(trial.config), result["value"])

    with connected(address, at_once), tempfile.TemporaryDirectory(prefix="asymdiffrec-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(Trial, {"cpu": 1}),
            param_space={name: tune.choice(range(len(choices))) for name, choices in names.items()},
            tune_config=tune.TuneConfig(
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=[
                        {name: names[name].index(value) for name, value in one.items()} for one in first
                    ],
                    random_state=seed,
                    max_concurrent=at_once,
                ),
                num_samples=MOST,
                time_budget_s=seconds,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0, callbacks=[Told()]),
        )
        results = tuner.fit()
    return [
        (chosen(result.config), float(result.metrics["value"]))
        for result in results
        if result.config is not None and result.metrics and "value" in result.metrics and not result.error
    ]
