"""The shipped configs of other systems: parameters, optimiser, schedule, as published."""

import math
from pathlib import Path

import pytest
import torch
from fidelity import record
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmseg.registry import MODELS
from published import read_json
from torch.overrides import TorchFunctionMode

import cae_seg.registration  # noqa: F401
from cae_seg.models.pretrained.published import to_model_names

CONFIGS = Path(__file__).parents[2] / "configs_local"
GROUPS, RECIPES = read_json("groups.json.gz"), read_json("recipes.json")
SHIPPED = {
    "swin_t": "swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k",
    "xcit_s12_p16": "xcit/upernet_xcit_small_12_p16_160k_ade20k",
    "xcit_s12_p8": "xcit/upernet_xcit_small_12_p8_160k_ade20k",
    "setr_naive": "setr/setr_naive_512x512_160k_ade20k_bs_16",
    "setr_pup": "setr/setr_pup_512x512_160k_ade20k_bs_16",
    "setr_mla": "setr/setr_mla_512x512_160k_ade20k_bs_16",
    "beit_b": "beit/upernet_beit_base_12_640_slide_160k_ade20k_pt2ft",
    "beit_b_pt": "beit/upernet_beit_base_12_512_slide_160k_ade20k_pt",
    "mae_b": "mae/upernet_mae_base_12_512_slide_160k_ade20k",
    "ibot_b": "ibot/upernet_ibot_base_12_512_slide_160k_ade20k",
    "deit_b_upernet": "deit/upernet_deit_base_16_512x512_160k_ade20k",
}
FAMILIES = ("swin", "xcit", "setr", "beit", "mae", "ibot", "deit", "dinov2", "dinov3")
ALL = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for family in FAMILIES
    for path in (CONFIGS / family).glob("*.py")
)


def config(stem: str) -> Config:
    init_default_scope("mmseg")
    return Config.fromfile(CONFIGS / f"{stem}.py")


class DropPathRatesOnCPU(TorchFunctionMode):
    """mmsegmentation's constructors read the elements of `torch.linspace`: not on meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def build(settings: Config) -> torch.nn.Module:
    """Build the segmentor on the meta device, where it costs nothing."""
    with torch.device("meta"), DropPathRatesOnCPU():
        return MODELS.build(settings.model).eval()


@pytest.mark.parametrize("system", sorted(GROUPS.keys() & SHIPPED))
def test_rate_and_weight_decay_of_every_parameter_are_the_published_ones(system):
    settings, known = config(SHIPPED[system]), GROUPS[system]
    model = build(settings)
    published = published_names(model, known["params"])
    wrapper = build_optim_wrapper(model, settings.optim_wrapper)
    base = settings.optim_wrapper.optimizer.lr
    groups = {id(p): g for g in wrapper.optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        lr_mult, decay, _ = known["params"][published[name]]
        assert math.isclose(group["lr"] / base, lr_mult, rel_tol=1e-12), name
        assert group["weight_decay"] == decay, name
    unused = set(known["params"]) - set(published.values())
    assert all("conv_seg" in n or ".conv_" in n for n in unused), unused


def published_names(model, params: dict) -> dict[str, str]:
    """Return the published name of each parameter, by translating tensors of distinct values.

    The sizes are checked on the way.
    """
    names = sorted(params)
    tagged = {n: torch.tensor(float(i)).expand(params[n][2]) for i, n in enumerate(names)}
    means = {
        n.replace("conv_", "syncbn_fc_").replace(".bias", ".running_mean"): torch.zeros(t.shape)
        for n, t in tagged.items()
        if "_head" in n and ".conv_" in n and n.endswith(".bias")
    }
    own = dict(model.named_parameters())
    same = set(own) <= set(names)
    translated = tagged if same else to_model_names(tagged | means, model, [])
    assert set(own) <= set(translated), set(own) - set(translated)
    assert all(translated[n].shape == p.shape for n, p in own.items())
    return {n: names[int(translated[n][(0,) * p.dim()])] for n, p in own.items()}


@pytest.mark.parametrize("system", sorted(GROUPS.keys() & SHIPPED))
def test_number_of_parameters_is_the_published_one(system):
    model, known = build(config(SHIPPED[system])), GROUPS[system]
    unused = published_only(model, known["params"])
    total = sum(p.numel() for p in model.parameters())
    assert total + sum(math.prod(known["params"][n][2]) for n in unused) == (
        known["parameters_total"] - key_biases(model, known["params"])
    )


def published_only(model, params: dict) -> set[str]:
    """Return published parameters without one of ours: never used, or folded into a batch norm."""
    return set(params) - set(published_names(model, params).values())


def key_biases(model, params: dict) -> int:
    """Return how many elements of fused biases the model leaves out: the key's, of no effect."""
    fused = [n for n in params if n.endswith("attn.qkv.bias")]
    own = dict(model.named_parameters())
    split = [n for n in fused if n.replace("qkv.bias", "q_bias") in own]
    return sum(params[n][2][0] // 3 for n in split)


@pytest.mark.parametrize("system", sorted(n for n in SHIPPED if "lr_at_iteration" in RECIPES[n]))
def test_learning_rate_at_the_listed_iterations(system):
    settings, known = config(SHIPPED[system]), RECIPES[system]["lr_at_iteration"]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    base = settings.optim_wrapper.optimizer.lr
    if len(known["0"]) == 2:  # backbone and heads
        head = settings.optim_wrapper.paramwise_cfg.custom_keys["head"].lr_mult
        groups.append({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base * head})
    optimizer = torch.optim.SGD(groups, lr=base)
    schedulers = [
        PARAM_SCHEDULERS.build({**entry, "optimizer": optimizer})
        for entry in settings.param_scheduler
    ]
    for iteration in range(max(map(int, known)) + 1):
        for group, rate in zip(optimizer.param_groups, known.get(str(iteration), []), strict=False):
            error = abs(group["lr"] - rate) / rate
            record(f"{system}: learning rate at listed iterations", error, 1e-9)
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize("system", sorted(SHIPPED))
def test_recipe_is_the_published_one(system):
    settings, known = config(SHIPPED[system]), RECIPES[system]
    optimiser = known["optimizer"].get("optimizer", known["optimizer"])
    ours = settings.optim_wrapper.optimizer
    for key in ("type", "lr", "betas", "weight_decay", "momentum"):
        value = ours.get(key)
        assert (list(value) if key == "betas" and value else value) == optimiser.get(key), key
    assert settings.train_cfg.max_iters == known["max_iters"]
    if "test_cfg" in known:
        test = settings.model.test_cfg
        assert test.mode == known["test_cfg"]["mode"]
        assert list(test.get("crop_size") or []) == known["test_cfg"].get("crop_size", [])
        assert list(test.get("stride") or []) == known["test_cfg"].get("stride", [])


def sized(stem: str):
    """Mark the large models, whose building alone takes seconds."""
    large = "_24_" in stem or "large" in stem
    return pytest.param(stem, marks=pytest.mark.slow if large else ())


@pytest.mark.parametrize("stem", [sized(stem) for stem in ALL])
def test_shipped_config_builds_at_full_size_and_takes_its_crop(stem):
    settings = config(stem)
    model = build(settings)
    size = settings.model.data_preprocessor.size
    assert tuple(settings.crop_size) == tuple(size)
    assert build_optim_wrapper(model, settings.optim_wrapper).optimizer.param_groups
    if settings.model.backbone.type == "CAE":  # its fast paths do not run on the meta device
        assert model.backbone.grid_size == (size[0] // 16, size[1] // 16)
        return
    with torch.no_grad():
        logits = model.decode_head(model.extract_feat(torch.zeros(1, 3, *size, device="meta")))
    assert logits.shape[:2] == (1, 150)
