"""The model that generates the synthetic click log: users, items and situations, clicks, and missing fields.

Each sample draws a user, an item and a situation, each from a finite population. The click probability depends on all
attributes of the user, the item and the situation; some attributes can be missing in the recorded fields. A log of
400,000 rows is enough to learn nearly all effects, because the effect of a rare id depends mostly on its segment or
topic and its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import expit

SEGMENTS, TOPICS = 5, 6
USERS, CITIES = 500, 20
ITEMS, CATEGORIES, BRANDS, TAGS = 500, 24, 36, 30
DEVICES, POSITIONS = 4, 8
MAX_HISTORY = 10
WEEKS = 4
START_TIME = 1_704_067_200
"""Monday 2024-01-01 00:00 UTC, in seconds since 1970"""
BIAS = -0.2


@dataclass(frozen=True)
class Population:
    """A population of E members: all users, all items, or all situations. One field group describes its members."""

    probability: np.ndarray
    """[E] probability that a sample draws each member"""
    columns: Mapping[str, pa.Array]
    """{field: [E] value of each member}"""
    missing_probability: Mapping[str, np.ndarray]
    """{field: [E] probability that the field is missing}"""
    outage_probability: float
    """Probability that all fields of the group are missing"""
    identifying_fields: tuple[str, ...]
    """The fields that together identify the member, if none of them is missing"""
    effect: np.ndarray
    """[E] contribution to the logit"""
    cluster: np.ndarray
    """[E] segment of each user, topic of each item, 0 for situations"""


@dataclass(frozen=True)
class ClickModel:
    """The populations and the effects that determine the click probabilities."""

    groups: Mapping[str, Population]
    affinity: np.ndarray
    """[SEGMENTS, TOPICS], a matrix of rank 3: contribution of (segment of the user, topic of the item) to the logit"""
    history: np.ndarray
    """[SEGMENTS, ITEMS] distribution of the items in the histories of the users of each segment"""

    def logit(self, members: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the log-odds of a click, given {group: indices of members}; the arrays can have any shape."""
        single = sum(population.effect[members[group]] for group, population in self.groups.items())
        segment, topic = (self.groups[group].cluster[members[group]] for group in ("user", "item"))
        return BIAS + single + self.affinity[segment, topic]


@dataclass(frozen=True)
class ClickLog:
    """R samples with all their values, and the mask of missing fields."""

    members: Mapping[str, np.ndarray]
    """{group: [R] index of the member in the population}"""
    history: np.ndarray
    """[R, MAX_HISTORY] items, -1 after the last item"""
    missing: Mapping[str, np.ndarray]
    """{field: [R] bool}"""
    probability: np.ndarray
    """[R] probability of a click, given the members"""
    label: np.ndarray
    """[R] 0 or 1"""
    time: np.ndarray
    """[R] seconds since 1970"""


def make_click_model(seed: int) -> ClickModel:
    """Draw the populations and effects. Equal seeds give equal models."""
    rng = np.random.default_rng([seed, 0])
    affinity = 0.6 * rng.standard_normal((SEGMENTS, 3)) @ rng.standard_normal((3, TOPICS))
    users, items, situations = _users(rng), _items(rng), _situations(rng)
    liked = items.probability * np.exp(1.5 * affinity[:, items.cluster])
    history = liked / liked.sum(axis=1, keepdims=True)
    return ClickModel({"user": users, "item": items, "context": situations}, affinity, history)


def draw_log(model: ClickModel, rows: int, rng: np.random.Generator) -> ClickLog:
    """Draw `rows` independent samples."""
    members = {
        group: rng.choice(len(population.probability), rows, p=population.probability)
        for group, population in model.groups.items()
    }
    segment = model.groups["user"].cluster[members["user"]]
    history = draw_categories(model.history, np.repeat(segment, MAX_HISTORY), rng).reshape(rows, MAX_HISTORY)
    history[np.arange(MAX_HISTORY) >= rng.integers(1, MAX_HISTORY + 1, (rows, 1))] = -1
    missing = {}
    for group, population in model.groups.items():
        outage = rng.random(rows) < population.outage_probability
        for field, probability in population.missing_probability.items():
            missing[field] = outage | (rng.random(rows) < probability[members[group]])
    probability = expit(model.logit(members))
    hours = members["context"] // (DEVICES * POSITIONS)
    time = START_TIME + 3600 * (24 * 7 * rng.integers(WEEKS, size=rows) + hours) + rng.integers(3600, size=rows)
    return ClickLog(members, history, missing, probability, (rng.random(rows) < probability).astype(np.int8), time)


def draw_categories(distributions: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one draw from `distributions[w]` for each w in `which` [R], [R].

    distributions: [K, E]; each row sums to 1.

    `Generator.choice` of numpy accepts only one distribution.
    """
    count, size = distributions.shape
    edges = np.minimum(np.cumsum(distributions, axis=1), 1) + np.arange(count)[:, None]
    edges[:, -1] = np.arange(count) + 1
    return np.searchsorted(edges.ravel(), which + rng.random(len(which)), side="right") - which * size


def _zipf(members: int) -> np.ndarray:
    """Return probabilities proportional to 1 / rank, [E]."""
    weight = np.arange(1, members + 1) ** -1.0
    return weight / weight.sum()


def _users(rng: np.random.Generator) -> Population:
    """Draw the users: segments differ in age, wealth and city.

    Income is missing more often for young or rich users. History is missing more often for rare users.
    """
    segment = rng.integers(SEGMENTS, size=USERS)
    age = np.clip(np.round(rng.uniform(22, 62, SEGMENTS)[segment] + 5 * rng.standard_normal(USERS)), 16, 80)
    wealth = 0.02 * (age - 40) + 0.4 * rng.standard_normal(SEGMENTS)[segment] + 0.2 * rng.standard_normal(USERS)
    income = np.round(40 * np.exp(wealth))
    city = draw_categories(rng.dirichlet(np.full(CITIES, 0.1), SEGMENTS), segment, rng)
    gender = rng.integers(2, size=USERS)
    effect = (
        0.7 * rng.standard_normal(SEGMENTS)[segment]
        + 0.7 * np.cos((age - 30) / 10)
        + 0.9 * wealth
        + 0.4 * rng.standard_normal(CITIES)[city]
        + 0.4 * gender
        + 0.1 * rng.standard_normal(USERS)
    )
    columns = {
        "user_id": pa.array(np.arange(USERS)),
        "age": pa.array(age),
        "gender": pa.array(gender),
        "income": pa.array(income),
        "city": pa.array([f"city-{number:02d}" for number in city]),
    }
    missing = {
        "user_id": np.full(USERS, 0.03),
        "age": np.full(USERS, 0.05),
        "gender": np.full(USERS, 0.05),
        "income": 0.05 + 0.5 * expit((26 - age) / 3) + 0.3 * expit((income - 80) / 10),
        "city": np.full(USERS, 0.03),
        "history": np.where(np.arange(USERS) < USERS // 2, 0.05, 0.4),
    }
    return Population(_zipf(USERS), columns, missing, 0.04, ("user_id",), effect, segment)


def _items(rng: np.random.Generator) -> Population:
    """Draw the items. Each category, brand and tag belongs to one topic. The price of cheap items is often missing."""
    topic = rng.integers(TOPICS, size=ITEMS)
    category, brand = (topic + TOPICS * rng.integers(count // TOPICS, size=ITEMS) for count in (CATEGORIES, BRANDS))
    tags = [main + TOPICS * rng.choice(TAGS // TOPICS, rng.integers(1, 5), replace=False) for main in topic]
    cost = 0.6 * rng.standard_normal(TOPICS)[topic] + 0.5 * rng.standard_normal(ITEMS)
    appeal = rng.standard_normal(TAGS)
    effect = (
        0.7 * rng.standard_normal(CATEGORIES)[category]
        + 0.4 * rng.standard_normal(BRANDS)[brand]
        + 0.9 * np.array([appeal[item_tags].mean() for item_tags in tags])
        - 0.7 * cost
        + 0.1 * rng.standard_normal(ITEMS)
    )
    columns = {
        "item_id": pa.array(np.arange(ITEMS)),
        "category": pa.array(category),
        "brand": pa.array(brand),
        "price": pa.array(np.round(20 * np.exp(cost), 1)),
        "tags": pa.array(tags),
    }
    missing = {
        "item_id": np.full(ITEMS, 0.03),
        "category": np.full(ITEMS, 0.05),
        "brand": np.full(ITEMS, 0.10),
        "price": 0.05 + 0.5 * expit(-4 * cost - 2),
        "tags": np.full(ITEMS, 0.15),
    }
    return Population(_zipf(ITEMS), columns, missing, 0.03, ("item_id",), effect, topic)


def _situations(rng: np.random.Generator) -> Population:
    """Return all combinations of weekday, hour, device and position on the page.

    The position is often missing for one of the devices.
    """
    weekday, hour, device, position = (index.ravel() for index in np.indices((7, 24, DEVICES, POSITIONS)))
    weight = (1.2 - np.cos(2 * np.pi * (hour - 4) / 24)) * np.array([0.5, 0.3, 0.15, 0.05])[device] * 0.8**position
    effect = (
        0.6 * np.sin(2 * np.pi * (hour - rng.integers(24)) / 24)
        + 0.2 * rng.standard_normal(7)[weekday]
        + np.array([0.0, 0.5, -0.7, 0.9])[device]
        - 1.2 * np.log1p(position)
    )
    columns = {
        "hour": pa.array(hour),
        "weekday": pa.array(weekday),
        "device": pa.array(device),
        "position": pa.array(position + 1),
    }
    missing = {
        "hour": np.full(len(weight), 0.02),
        "weekday": np.full(len(weight), 0.02),
        "device": np.full(len(weight), 0.05),
        "position": np.array([0.03, 0.03, 0.5, 0.03])[device],
    }
    return Population(weight / weight.sum(), columns, missing, 0.03, tuple(columns), effect, np.zeros_like(hour))
