"""What parts of a model cost: names of operations, sums, files and comparisons."""

import json
from pathlib import Path

import pytest

from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.errors import UserError
from albef_jax.preflight import by_part
from albef_jax.preflight.by_part import Cost
from albef_jax.preflight.plan import plan

TINY = str(Path(__file__).parents[1] / "tiny.py")
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name, part", [
    ("jit(step)/jvp(vmap(Albef.encode_image))/visual_encoder/block_11/attn/qkv/dot_general",
     ("visual_encoder/block/attn", "forward")),
    ("jit(step)/transpose(jvp(vmap(Albef.encode_image)))/visual_encoder/block_0/mlp/fc1/dot_general",
     ("visual_encoder/block/mlp", "backward")),
    ("jit(step)/jvp(vmap(text_encoder.fuse))/text_encoder._fusion_trunk/fusion_3/cross/cross._read/"
     "drop_probs/vmap()/add", ("text_encoder/fusion/cross", "forward")),
    ("jit(step)/jvp(vmap(teacher))/Albef.encode_image/visual_encoder/block_0/attn/shard_map/"
     "forward_kernel/pallas_call", ("visual_encoder/block/attn", "teacher")),
    ("jit(step)/jvp(vmap())/vmap(jit(_threefry_split))/Pretrain.loss/add", ("losses", "forward")),
    ("jit(step)/transpose(jvp(vmap()))/reduce_sum", ("losses", "backward")),
    ("jit(step)/jvp(checkpoint)/rematted_computation/visual_encoder/block_1/norm1/mul",
     ("visual_encoder/block/norm1", "backward")),
    ("jit(step)/jvp(vmap(Albef.encode_image))/visual_encoder/while/body/closed_call/block_0/mlp/"
     "fc2/dot_general", ("visual_encoder/block/mlp", "forward")),
    ("jit(step)/optimizer/sqrt", ("optimizer", "other")),
    ("jit(step)/add", ("unnamed", "other")), ("broadcast.944", ("unnamed", "other")),
    ("", ("unnamed", "other"))])
def test_parts_by_the_names_of_operations(name, part):
    assert by_part.part_of(name) == part


@pytest.fixture(scope="module")
def planned():
    """The plan of the tiny config for this CPU, once; every backend names operations alike."""
    return plan(load_config(TINY, ["--config.batch_size=8"]), "cpu")


def test_parts_sum_to_the_plan(planned):
    sums = by_part.sums_of(planned["parts"])
    total = sum(sums.values(), Cost())
    assert total.bytes == pytest.approx(planned["bytes"])
    assert total.flops == pytest.approx(planned["flops"])
    assert total.seconds == pytest.approx(planned["prediction"].bound)
    assert {"visual_encoder/block/attn", "visual_encoder/block/mlp", "text_encoder/fusion/cross",
            "text_encoder/text/attention", "text_encoder/head", "optimizer",
            "losses"} <= sums.keys()
    assert sums["visual_encoder/block/mlp"].flops > sums["itm_head/dense"].flops > 0
    assert list(sums.values()) == sorted(sums.values(), key=lambda cost: -cost.seconds)
    for name in ("forward", "backward", "teacher"):
        assert planned["parts"]["visual_encoder/block/mlp", name].flops > 0
    # Backward there are two products for one; the teacher has only the way there.
    flops = {name: planned["parts"]["visual_encoder/block/mlp", name].flops
             for name in by_part.PASSES[:3]}
    assert flops["backward"] == pytest.approx(2 * flops["forward"])
    assert flops["teacher"] == pytest.approx(flops["forward"])


def test_table_and_file(planned, tmp_path):
    lines = by_part.table(planned["parts"]).splitlines()
    assert lines[-1].split()[0] == "total" and lines[-1].split()[-1] == "100.0"
    whole = sum(cost.bytes for cost in planned["parts"].values()) / 1e9
    assert float(lines[-1].split()[5]) == pytest.approx(whole, abs=1e-3)
    by_part.write_json(tmp_path / "plan.json", "cpu", planned["parts"])
    assert by_part.read_json(tmp_path / "plan.json") == planned["parts"]


def test_comparison():
    before = {("a", "forward"): Cost(3e9, 1e12, 0.004), ("b", "other"): Cost(1e9, 0, 0.001),
              ("same", "forward"): Cost(5e9, 0, 0.005)}
    after = {("a", "forward"): Cost(1e9, 1e12, 0.001), ("same", "forward"): Cost(5e9, 0, 0.005),
             ("new", "other"): Cost(5e8, 0, 0.0005)}
    rows = [line.split() for line in by_part.comparison(before, after).splitlines()[3:]]
    assert rows == [["a", "3.000", "1.000", "4.00", "1.00", "+3.00"],
                    ["b", "1.000", "0.000", "1.00", "0.00", "+1.00"],
                    ["new", "0.000", "0.500", "0.00", "0.50", "-0.50"],
                    ["the", "others", "5.000", "5.000", "5.00", "5.00", "+0.00"],
                    ["total", "9.000", "6.500", "10.00", "6.50", "+3.50"]]


@pytest.mark.parametrize("contents", ["{", "[]", '{"parts": [{"part": "a"}]}', '{"parts": 3}'])
def test_files_that_are_no_plans(contents, tmp_path):
    (tmp_path / "plan.json").write_text(contents)
    with pytest.raises(UserError, match="is no plan by part; give --against a file"):
        by_part.read_json(tmp_path / "plan.json")


@pytest.mark.parametrize("arguments, words", [
    (["--target", "gpu", "--by-op"], "for gpu there is none; give --target a TPU slice or cpu"),
    (["--target", "cpu", "--against", "{}/none.json"], "none.json cannot be read (No such file"),
    (["--target", "cpu", "--json", "{}/none/plan.json"], "its folder does not exist; give --json"),
])
def test_mistakes(arguments, words, tmp_path, capsys):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["plan", "--config", TINY, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """Two plans, the second compared with the first, whose file is JSON for anybody."""
    file = str(tmp_path / "plan.json")
    arguments = ["plan", "--config", TINY, "--target", "cpu", "--config.batch_size=8"]
    assert main([*arguments, "--by-op", "--json", file]) == 0
    assert "by part, at the peaks" in capsys.readouterr().out
    assert json.loads(open(file).read())["target"] == "cpu"
    assert main([*arguments, "--against", file, "--config.model.text_layers=2"]) == 0
    assert "text_encoder/text/ffn" in capsys.readouterr().out.partition("against")[2]


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes, target, overrides", [
    (7.08, "v5e:2x2", ["batch_size=256", "model.vit_depth=1", "model.text_layers=1",
                       "model.fusion_layers=2"]),
    (33.6, "v5e:2x4", [])], ids=["few layers", "whole"])
def test_what_the_papers_step_moves(gigabytes, target, overrides):
    """A budget: what moves more needs a reason, and what moves less a new budget."""
    pytest.importorskip("libtpu")
    config = load_config(CONFIGS / "pretrain_14m.py:paper", [
        f"--config.{override}" for override in overrides])
    assert plan(config, target)["bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.03)
