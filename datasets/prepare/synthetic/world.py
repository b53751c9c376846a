"""The ground truth of the synthetic click log: who acts, on what, when, who clicks, and what of all that is recorded.

A sample draws a user, an item and a situation, each from a finite population. The click depends on all three in full;
the record may lack fields of each. The sizes and effects below are such that a log of 400,000 rows tells nearly all of
it: rare ids act mostly through their segment, topic and attributes.
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
LONGEST_HISTORY = 10
WEEKS = 4
START = 1_704_067_200
"""Monday 2024-01-01 00:00 UTC"""
BIAS = -0.2


@dataclass(frozen=True)
class Population:
    """The E members of which one field group tells: all users, all items, or all situations."""

    share: np.ndarray
    """[E] probability that a sample draws the member"""
    columns: Mapping[str, pa.Array]
    """field -> [E] values"""
    missing: Mapping[str, np.ndarray]
    """field -> [E] probability that it is not recorded"""
    dark: float
    """probability that nothing of the group is recorded"""
    identity: tuple[str, ...]
    """the fields that tell the member when all of them are recorded"""
    effect: np.ndarray
    """[E] contribution to the logit"""
    kind: np.ndarray
    """[E] segment of a user, topic of an item"""


@dataclass(frozen=True)
class World:
    groups: Mapping[str, Population]
    affinity: np.ndarray
    """[SEGMENTS, TOPICS], of rank 3: contribution of a user's segment together with an item's topic to the logit"""
    history: np.ndarray
    """[SEGMENTS, ITEMS] distribution of the items in the history of a segment's user"""

    def logit(self, members: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log-odds of a click for a member of each group; any shape."""
        single = sum(population.effect[members[group]] for group, population in self.groups.items())
        segment, topic = (self.groups[group].kind[members[group]] for group in ("user", "item"))
        return BIAS + single + self.affinity[segment, topic]


@dataclass(frozen=True)
class Log:
    """R samples as they happened, and which of their fields were not recorded."""

    members: Mapping[str, np.ndarray]
    """group -> [R] place in the population"""
    history: np.ndarray
    """[R, LONGEST_HISTORY] items, -1 after the last"""
    missing: Mapping[str, np.ndarray]
    """field -> [R] bool"""
    probability: np.ndarray
    """[R] of a click, given the members"""
    label: np.ndarray
    """[R] 0 or 1"""
    time: np.ndarray
    """[R] seconds since 1970"""


def make_world(seed: int) -> World:
    rng = np.random.default_rng([seed, 0])
    affinity = 0.6 * rng.standard_normal((SEGMENTS, 3)) @ rng.standard_normal((3, TOPICS))
    users, items, situations = _users(rng), _items(rng), _situations(rng)
    liked = items.share * np.exp(1.5 * affinity[:, items.kind])
    history = liked / liked.sum(axis=1, keepdims=True)
    return World({"user": users, "item": items, "context": situations}, affinity, history)


def draw_log(world: World, rows: int, rng: np.random.Generator) -> Log:
    members = {group: rng.choice(len(each.share), rows, p=each.share) for group, each in world.groups.items()}
    history = choose(world.history, np.repeat(world.groups["user"].kind[members["user"]], LONGEST_HISTORY), rng)
    history = history.reshape(rows, LONGEST_HISTORY)
    history[np.arange(LONGEST_HISTORY) >= rng.integers(1, LONGEST_HISTORY + 1, (rows, 1))] = -1
    missing = {}
    for group, population in world.groups.items():
        dark = rng.random(rows) < population.dark
        for field, probability in population.missing.items():
            missing[field] = dark | (rng.random(rows) < probability[members[group]])
    probability = expit(world.logit(members))
    hours = members["context"] // (DEVICES * POSITIONS)
    time = START + 3600 * (24 * 7 * rng.integers(WEEKS, size=rows) + hours) + rng.integers(3600, size=rows)
    return Log(members, history, missing, probability, (rng.random(rows) < probability).astype(np.int8), time)


def choose(distributions: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw from distributions[w] for each w of `which`: [K, E] rows that sum to 1, [R] -> [R]."""
    count, size = distributions.shape
    edges = np.minimum(np.cumsum(distributions, axis=1), 1) + np.arange(count)[:, None]
    edges[:, -1] = np.arange(count) + 1
    return np.searchsorted(edges.ravel(), which + rng.random(len(which)), side="right") - which * size


def _zipf(members: int) -> np.ndarray:
    share = np.arange(1, members + 1) ** -1.0
    return share / share.sum()


def _users(rng: np.random.Generator) -> Population:
    """Segments differ in age, wealth and city. The young and the rich withhold income; rare users have no history."""
    segment = rng.integers(SEGMENTS, size=USERS)
    age = np.clip(np.round(rng.uniform(22, 62, SEGMENTS)[segment] + 5 * rng.standard_normal(USERS)), 16, 80)
    wealth = 0.02 * (age - 40) + 0.4 * rng.standard_normal(SEGMENTS)[segment] + 0.2 * rng.standard_normal(USERS)
    income = np.round(40 * np.exp(wealth))
    city = choose(rng.dirichlet(np.full(CITIES, 0.1), SEGMENTS), segment, rng)
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
    """Categories, brands and tags belong to a topic each. Cheap items often come without their price."""
    topic = rng.integers(TOPICS, size=ITEMS)
    category, brand = (topic + TOPICS * rng.integers(count // TOPICS, size=ITEMS) for count in (CATEGORIES, BRANDS))
    tags = [kind + TOPICS * rng.choice(TAGS // TOPICS, rng.integers(1, 5), replace=False) for kind in topic]
    cost = 0.6 * rng.standard_normal(TOPICS)[topic] + 0.5 * rng.standard_normal(ITEMS)
    appeal = rng.standard_normal(TAGS)
    effect = (
        0.7 * rng.standard_normal(CATEGORIES)[category]
        + 0.4 * rng.standard_normal(BRANDS)[brand]
        + 0.9 * np.array([appeal[own].mean() for own in tags])
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
    """Every weekday, hour, device and position on the page. One device often does not report the position."""
    weekday, hour, device, position = (each.ravel() for each in np.indices((7, 24, DEVICES, POSITIONS)))
    share = (1.2 - np.cos(2 * np.pi * (hour - 4) / 24)) * np.array([0.5, 0.3, 0.15, 0.05])[device] * 0.8**position
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
        "hour": np.full(len(share), 0.02),
        "weekday": np.full(len(share), 0.02),
        "device": np.full(len(share), 0.05),
        "position": np.array([0.03, 0.03, 0.5, 0.03])[device],
    }
    return Population(share / share.sum(), columns, missing, 0.03, tuple(columns), effect, np.zeros_like(hour))
