"""Weights that are missing, left over, cut off or not finite are one error; so is a wrong save."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import save_zoo_model

from vimpo.config import ConfigError, Runtime
from vimpo.errors import DamagedError
from vimpo.models.networks import Critic, load_policy
from vimpo.models.saved import check_saved
from vimpo.models.weights import listed

NAME = "model.layers.0.mlp.up_proj.weight"
ALL = "allowed: all weights of a Qwen3ForCausalLM, each finite, and no others"


@pytest.fixture
def folder(tmp_path):
    return save_zoo_model("qwen3", tmp_path / "model")


def rewritten(change):
    """Change a folder's weights as a dictionary."""

    def write(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def bytes_of(change):
    """Change a folder's weights as bytes."""

    def write(folder):
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return write


def put(value, place):
    def change(tensors):
        tensors[NAME].view(-1)[place] = value

    return rewritten(change)


def split(folder, write_second=True):
    """The weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": [NAME], "b.safetensors": [n for n in tensors if n != NAME]}
    for file, names in parts.items():
        if write_second or file == "a.safetensors":
            save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {n: file for file, names in parts.items() for n in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


FAULTS = {
    "missing": (rewritten(lambda t: t.pop(NAME)), rf"lacks {NAME}; {ALL}"),
    "several missing": (
        rewritten(lambda t: [t.pop(n) for n in list(t) if "layers.1" in n]),
        r"model\.safetensors' lacks model\.layers\.1\.input_l.*, .*, .* and 8 more; allowed: all",
    ),
    "left over": (
        rewritten(lambda t: t.update({"v_head.weight": torch.ones(1)})),
        r"has tensors that the model does not: v_head\.weight; allowed",
    ),
    "size": (
        rewritten(lambda t: t.update({NAME: torch.ones(24, 16)})),
        rf"has other sizes than config\.json says: {NAME} \[24, 16\] instead of \[32, 16\]; all",
    ),
    "NaN": (put(torch.nan, 5), rf"has numbers that are not finite in {NAME}; all"),
    "infinity": (put(-torch.inf, 0), rf"has numbers that are not finite in {NAME}; all"),
    "pointer": (
        bytes_of(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"model\.safetensors' is a git-lfs pointer, not the weights; allowed: .*git lfs pull",
    ),
    "cut off": (bytes_of(lambda b: b[:-100]), r"model\.safetensors' is cut off or damaged \(.*\);"),
    "empty": (bytes_of(lambda _: b""), r"model\.safetensors' is cut off or damaged \(.*\); allow"),
    "no file": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"' holds no model\.safetensors; allowed: a folder with all of its weights",
    ),
    "missing part": (lambda f: split(f, write_second=False), r"' holds no b\.safetensors; allowed"),
    "index": (
        lambda f: (split(f), (f / "model.safetensors.index.json").write_text("[]", "utf-8")),
        r"index\.json' is not an index of weights; allowed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_models_are_one_error(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        load_policy(folder, Runtime())
    assert str(caught.value).startswith("path: '")
    assert len(str(caught.value).splitlines()) == 1


def test_whole_weights_are_loaded_in_one_file_or_several(folder):
    one = load_policy(folder, Runtime()).state_dict()
    split(folder)
    several = load_policy(folder, Runtime()).state_dict()
    assert one.keys() == several.keys()
    assert all(torch.equal(one[n], several[n]) for n in one)


def test_a_failed_runs_own_model_is_loaded_whatever_its_numbers(folder):
    put(torch.nan, 5)(folder)
    model = load_policy(folder, Runtime(), finite=False)
    assert model.get_parameter(NAME).isnan().sum() == 1


def test_names_are_shown_in_order_and_counted():
    assert listed({"b", "a"}) == "a, b"
    assert listed({"b", "d", "a", "c", "e"}) == "a, b, c and 2 more"


# --- What was saved ------------------------------------------------------------------------------


def test_a_save_is_what_was_trained(folder):
    policy = load_policy(folder, Runtime()).eval()
    check_saved(policy, folder, Runtime())
    put(torch.nan, 5)(folder)
    failed = load_policy(folder, Runtime(), finite=False).eval()
    check_saved(failed, folder, Runtime())  # of a run that failed


def test_a_save_that_differs_in_one_bit_is_refused(folder):
    policy = load_policy(folder, Runtime()).eval()
    with torch.no_grad():
        weight = policy.get_parameter(NAME).view(-1)
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    with pytest.raises(DamagedError, match=rf"model: .* not what was trained: {NAME} differ; the"):
        check_saved(policy, folder, Runtime())


def test_a_save_whose_configuration_says_something_else_is_refused(folder):
    policy = load_policy(folder, Runtime()).eval()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["rope_parameters"]["rope_theta"] = 3.0
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(DamagedError, match=r"gives other logits than what was trained: \d.* apart"):
        check_saved(policy, folder, Runtime())


@pytest.mark.parametrize(
    "change", [lambda t: t.pop("head.bias"), lambda t: t.update(x=torch.ones(1))]
)
def test_a_critic_of_other_weights_is_one_error(folder, tmp_path, change):
    policy = load_policy(folder, Runtime())
    Critic.from_policy(policy).save(tmp_path / "critic")
    file = tmp_path / "critic" / "critic.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(
        DamagedError, match=r"critic\.safetensors' does not hold the weights of a Q"
    ):
        Critic.load(tmp_path / "critic", policy)
