"""Every extractor: shapes, gradients and equations; user-defined extractors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.extractors.base import Extractor
from asymdiffrec.diffusion.extractors.build import EXTRACTORS, AnyExtractorConfig, build_extractor
from asymdiffrec.diffusion.extractors.dcn import Cross
from asymdiffrec.diffusion.extractors.deepfm import DeepFM, pair_products
from asymdiffrec.diffusion.extractors.dlrm import DLRM, pair_dots
from asymdiffrec.diffusion.layers import MaskLinear

BATCH, FIELDS, WIDTH = 7, 5, 4


def build(config: dict, widths: list[int] | None = None, mask_width: int = FIELDS) -> Extractor:
    return build_extractor(
        TypeAdapter(AnyExtractorConfig).validate_python(config), widths or [WIDTH] * FIELDS, mask_width
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("mask_width", [0, FIELDS])
@pytest.mark.parametrize("name", EXTRACTORS)
def test_latent_has_its_width_and_every_parameter_a_gradient(name: str, mask_width: int) -> None:
    extractor = build({"name": name, "latent": 6}, mask_width=mask_width)
    x = torch.randn(BATCH, WIDTH * FIELDS, requires_grad=True)
    z = extractor(x, torch.ones(BATCH, mask_width))
    assert z.shape == (BATCH, 6)
    assert extractor.latent_dim == 6
    z.square().sum().backward()
    assert (x.grad != 0).any(0).all()
    for name, parameter in extractor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", EXTRACTORS)
def test_latent_depends_on_the_mask(name: str) -> None:
    extractor, x = build({"name": name}), torch.randn(BATCH, WIDTH * FIELDS)
    assert not torch.equal(extractor(x, torch.zeros(BATCH, FIELDS)), extractor(x, torch.ones(BATCH, FIELDS)))


@pytest.mark.parametrize("name", ["mlp", "dcn"])
def test_fields_of_unequal_widths(name: str) -> None:
    extractor = build({"name": name}, widths=[2, 6, 1], mask_width=3)
    assert extractor(torch.randn(BATCH, 9), torch.zeros(BATCH, 3)).shape == (BATCH, 64)


@pytest.mark.parametrize("name", ["deepfm", "dlrm"])
def test_products_of_fields_require_one_width(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found fields of widths 8 and 16"):
        build({"name": name}, widths=[8, 8, 16], mask_width=0)


def test_mask_linear_is_a_linear_layer_of_the_concatenation() -> None:
    layer, x, s = MaskLinear(8, 3, 5), torch.randn(BATCH, 8), torch.rand(BATCH, 3)
    weight = torch.cat([layer.x.weight, layer.s.weight], 1)
    torch.testing.assert_close(layer(x, s), nn.functional.linear(torch.cat([x, s], 1), weight, layer.x.bias))
    assert weight.abs().max() <= 11**-0.5


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layer_element_by_element(rank: int | None) -> None:
    cross, x_0, x_l = Cross(6, rank).double(), torch.randn(3, 6).double(), torch.randn(3, 6).double()
    if rank is None:
        weight, bias = cross.weight.weight, cross.weight.bias
    else:
        weight, bias = cross.weight[1].weight @ cross.weight[0].weight, cross.weight[1].bias
    for b in range(3):
        for i in range(6):
            expected = x_0[b, i] * (sum(weight[i, j] * x_l[b, j] for j in range(6)) + bias[i]) + x_l[b, i]
            torch.testing.assert_close(cross(x_0, x_l)[b, i], expected)


def test_fm_identity_equals_the_loop_over_pairs() -> None:
    vectors = torch.randn(BATCH, FIELDS, WIDTH).double()
    pairs = sum(vectors[:, i] * vectors[:, j] for i in range(FIELDS) for j in range(i))
    torch.testing.assert_close(pair_products(vectors), pairs)


def test_deepfm_with_weights_of_one_is_the_paper_s_sum() -> None:
    """With weights of 1 after FM each latent is first order + sum over pairs of <v_i, v_j> + deep part."""
    extractor = build({"name": "deepfm", "latent": 2})
    assert isinstance(extractor, DeepFM)
    nn.init.ones_(extractor.second.weight)
    x, s = torch.randn(BATCH, FIELDS * WIDTH), torch.zeros(BATCH, FIELDS)
    order_two = pair_dots(x.view(BATCH, FIELDS, WIDTH)).sum(1, keepdim=True)
    torch.testing.assert_close(extractor(x, s), extractor.first(x, s) + order_two + extractor.deep(x, s))


def test_dlrm_interactions_equal_the_loop_over_pairs() -> None:
    vectors = torch.randn(BATCH, FIELDS, WIDTH)
    pairs = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(FIELDS) for j in range(i + 1, FIELDS)]
    torch.testing.assert_close(pair_dots(vectors), torch.stack(pairs, 1))
    extractor = build({"name": "dlrm"})
    assert isinstance(extractor, DLRM)
    x, s = vectors.flatten(1), torch.ones(BATCH, FIELDS)
    dense = extractor.bottom(x, s)
    to_dense = [(dense * vectors[:, j]).sum(1) for j in range(FIELDS)]
    torch.testing.assert_close(extractor(x, s), extractor.top(torch.cat([dense, torch.stack(to_dense + pairs, 1)], 1)))


USER_MODULE = """
import torch
from asymdiffrec.diffusion.extractors.base import Extractor

class Sum(Extractor):
    def __init__(self, widths, mask_width, *, scale=1.0):
        super().__init__()
        self.latent_dim, self.scale = 1, scale

    def forward(self, x, mask):
        return self.scale * (x.sum(1, keepdim=True) + mask.sum(1, keepdim=True))

class NoLatent(Sum):
    def __init__(self, widths, mask_width):
        torch.nn.Module.__init__(self)

class NoForward(Extractor):
    pass

def function(widths, mask_width): ...
"""


@pytest.fixture
def _user_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_extractors.py").write_text(USER_MODULE)
    (tmp_path / "broken_import.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_user_modules")
def test_user_class() -> None:
    extractor = build({"name": "user_extractors:Sum", "options": {"scale": 2.0}})
    x, s = torch.randn(BATCH, WIDTH * FIELDS), torch.ones(BATCH, FIELDS)
    torch.testing.assert_close(extractor(x, s), 2 * (x.sum(1, keepdim=True) + FIELDS))


@pytest.mark.usefixtures("_user_modules")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "user_extractor:Sum"}, "cannot import user_extractor: No module named"),
        ({"name": "broken_import:Sum"}, "No module named 'a_module_that_is_not_there'"),
        ({"name": "user_extractors:Mean"}, "found None, allowed is a subclass"),
        (
            {"name": "user_extractors:function"},
            "allowed is a subclass of asymdiffrec.diffusion.extractors.base.Extractor",
        ),
        ({"name": "user_extractors:NoForward"}, "does not define forward"),
        ({"name": "user_extractors:NoLatent"}, "must set latent_dim"),
        ({"name": "user_extractors:Sum", "options": {"scala": 2.0}}, "unexpected keyword argument 'scala'"),
    ],
)
def test_unusable_user_classes_are_refused(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "transformer"}, "allowed are mlp, dcn, deepfm, dlrm and package.module:Class"),
        ({"name": "mlp", "layers": 3}, "layers"),
        ({"name": "mlp", "hidden": []}, "hidden"),
        ({"name": "dcn", "rank": 0}, "rank"),
        ({"hidden": [-1]}, "hidden"),
    ],
)
def test_wrong_values_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(config)


def test_config_survives_writing_and_reading() -> None:
    adapter: TypeAdapter = TypeAdapter(AnyExtractorConfig)
    for config in ({}, {"name": "dcn", "rank": None}, {"name": "user_extractors:Sum", "options": {"scale": 1}}):
        read = adapter.validate_python(config)
        assert adapter.validate_json(adapter.dump_json(read)) == read
