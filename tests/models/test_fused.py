"""Fused attention against the plain one: kernels run by Pallas' interpreter on the CPU."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.models import fused
from albef_jax.models.fused import _heads_held, fused_attention, fuses
from albef_jax.models.layers import MAPS, attention_probs
from albef_jax.models.vit import VitAttention
from albef_jax.parallel.axes import placed_on
from albef_jax.parallel.mesh import groups_of, make_mesh, shard_batch
from albef_jax.preflight.bench import noise_batch
from albef_jax.preflight.targets import find_target

TESTS = pathlib.Path(__file__).parents[1]


def plain_attention(qkv_bn3d, heads):
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in jnp.split(qkv_bn3d, 3, axis=-1))
    y = jnp.einsum("bhqn,bnhk->bqhk", attention_probs(q, k).astype(v.dtype), v)
    return y.reshape(*y.shape[:2], -1)


@pytest.mark.parametrize("n, width, heads", [(5, 32, 4), (17, 256, 4), (9, 640, 8), (6, 12, 3)])
@pytest.mark.parametrize("dtype, limit", [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_those_of_plain_attention(n, width, heads, dtype, limit):
    """Of several blocks of heads (256 channels: two heads fill the lanes), and of one."""
    key, other = jax.random.split(jax.random.key(n))
    qkv = 2 * jax.random.normal(key, (2, n, 3 * width), dtype)
    grad = jax.random.normal(other, (2, n, width), dtype)
    with jax.default_matmul_precision("highest"):
        wanted, wanted_back = jax.vjp(lambda x: plain_attention(x, heads), qkv)
        found, back = jax.vjp(lambda x: fused_attention([x], None, heads), qkv)
        wanted_grad, found_grad = wanted_back(grad)[0], back(grad)[0]
    assert found.dtype == found_grad.dtype == qkv.dtype
    for one, two in ((wanted, found), (wanted_grad, found_grad)):
        one, two = np.asarray(one, np.float32), np.asarray(two, np.float32)
        np.testing.assert_allclose(two, one, atol=limit * np.abs(one).max())


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_cross_attention(rate):
    """Queries of their own, and probabilities that dropout takes away."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, kv, grad = (jax.random.normal(key, shape) for key, shape in zip(
        keys, ((2, 7, 256), (2, 11, 512), (2, 7, 256))))
    keep = jax.random.bernoulli(keys[3], 1 - rate, (2, 4, 7, 11)) if rate else None

    def plain(q_bmd, kv_bn2d):
        q, k, v = (x.reshape(*x.shape[:2], 4, -1)
                   for x in (q_bmd, *jnp.split(kv_bn2d, 2, axis=-1)))
        probs = attention_probs(q, k)
        probs = probs if keep is None else jnp.where(keep, probs / (1 - rate), 0)
        return jnp.einsum("bhqn,bnhk->bqhk", probs, v).reshape(q_bmd.shape)

    with jax.default_matmul_precision("highest"):
        wanted, wanted_back = jax.vjp(plain, q, kv)
        found, back = jax.vjp(lambda *x: fused_attention(x, keep, 4, rate), q, kv)
        for one, two in zip((wanted, *wanted_back(grad)), (found, *back(grad))):
            np.testing.assert_allclose(two, one, atol=2e-6 * np.abs(one).max())


def test_heads_are_held_on_whole_lanes_as_many_as_there_is_room_for():
    tokens = {name: 2 * 7 * n * 2 for name, n in (("256 px", 257), ("384 px", 577))}
    assert _heads_held(12, 64, tokens["256 px"]) == 12  # of ViT-B on the way back
    assert _heads_held(12, 64, tokens["384 px"]) == 6
    assert _heads_held(16, 80, tokens["384 px"]) == 8  # of ViT-H: 8 heads are 5 x 128 channels
    assert _heads_held(3, 16, tokens["256 px"]) == 3  # never on whole lanes, so all at once
    assert _heads_held(12, 64, 1e9) == 2  # no room: as few as fill the lanes


def test_who_looks_at_maps_gets_the_plain_ones():
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    module = VitAttention(2, jnp.float32, attention="fused")
    params = module.init(jax.random.key(1), x)["params"]
    unseen = module.apply({"params": params}, x)
    seen, maps = module.apply({"params": params}, x, mutable=[MAPS])
    np.testing.assert_allclose(unseen, seen, atol=1e-6)
    np.testing.assert_allclose(maps[MAPS]["probs"][0].sum(-1), 1, rtol=1e-5)
    text = str(jax.make_jaxpr(lambda x: module.apply({"params": params}, x))(x))
    assert "pallas_call" in text


def test_where_it_is_used(monkeypatch, capsys):
    assert fuses("fused", jnp.float32, 0.1) and not fuses("plain", jnp.bfloat16)
    assert not fuses("auto", jnp.bfloat16)  # on this CPU
    monkeypatch.setattr(fused, "platform", lambda: "tpu")
    assert fuses("auto", jnp.float32, 0.1)
    monkeypatch.setattr(fused, "is_split", lambda name: name == "heads")
    assert not fuses("auto", jnp.bfloat16)


def test_without_cudnn_attention_is_plain_and_it_says_so_once(monkeypatch, capsys):
    """As on a GPU where it does not run: here there is none, so the real attempt fails."""
    monkeypatch.setattr(fused, "platform", lambda: "gpu")
    fused.cudnn_differentiates.cache_clear()
    assert not fuses("auto", jnp.float32) and not fuses("auto", jnp.bfloat16, 0.1)
    assert capsys.readouterr().err == ""  # nothing was tried
    assert not fuses("auto", jnp.bfloat16) and not fuses("fused", jnp.bfloat16)
    said = capsys.readouterr().err
    assert said.startswith("attention: plain, as cuDNN's does not run here (")
    assert said.count("\n") == 1
    fused.cudnn_differentiates.cache_clear()


@pytest.mark.parametrize("length", [4, 5])
def test_what_cudnn_is_given_is_attention_and_has_gradients_over_groups(length):
    """JAX has cuDNN's attention differentiate even numbers of tokens alone: odd ones get another."""
    qkv = jax.random.normal(jax.random.key(0), (3, 2, length, 3 * 16))

    def loss(qkv_bn3d, attend):
        return jnp.sum(jnp.sin(attend(qkv_bn3d)))

    given, wanted = (jax.vmap(jax.value_and_grad(functools.partial(loss, attend=attend)))(qkv)
                     for attend in (lambda x: fused._cudnn((x,), 2, "xla"),
                                    lambda x: plain_attention(x, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), given, wanted)


@pytest.mark.parametrize("length", [256, 257])
def test_cudnn_takes_gradients_over_groups(length, monkeypatch):
    """As far as JAX can say without a GPU: it lowers to cuDNN's two calls."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda which: False)

    def loss(qkv_bn3d):
        return jnp.sum(jnp.square(fused._cudnn((qkv_bn3d,), 12).astype(jnp.float32)))

    groups = jax.ShapeDtypeStruct((2, 4, length, 3 * 768), jnp.bfloat16)
    text = jax.jit(jax.vmap(jax.grad(loss))).trace(groups).lower(
        lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__cudnn$fmhaSoftmax") == 2


def test_a_step_with_dropout_is_that_of_plain_attention(tiny_run):
    """Losses, gradient and draws of one training step."""
    results = []
    for attention in ("plain", "fused"):
        task, _, state, batch = tiny_run(f"model.attention={attention}")
        (_, aux), grads = jax.value_and_grad(
            lambda params: task.loss(params, state.teacher, state.memory, batch,
                                     jax.random.key(3), task.schedule(0)),
            has_aux=True)(state.params)
        results.append((aux.metrics, grads))
    (metrics, grads), (others, other_grads) = results
    for name, value in metrics.items():
        assert float(others[name]) == pytest.approx(float(value), rel=1e-5), name
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grads,
                 other_grads)


EIGHT = """
import json, re, sys
import jax
from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.parallel.mesh import groups_of, make_mesh, shard_batch
from albef_jax.preflight.bench import noise_batch

for attention in ("plain", "fused"):
    config = load_config(sys.argv[1], ["--config.batch_size=32", f"--config.group_size={sys.argv[2]}",
                         f"--config.model.attention={attention}", *sys.argv[3:]])
    mesh = make_mesh(config.mesh, jax.devices(), groups_of(config))
    parts = build(config, mesh)
    state, batch = parts.create_state(), shard_batch(noise_batch(config), mesh)
    compiled = parts.step.lower(state, batch, None).compile()
    kinds = sorted(re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
                              r"(?:-start)?\\(", compiled.as_text()))
    for _ in range(2):
        state, metrics = compiled(state, batch, None)
    print(json.dumps({kind: kinds.count(kind) for kind in kinds}), float(metrics["loss"]),
          float(metrics["grad_norm"]), sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize("group, switches", [
    (4, ()), (16, ()), (4, ("--config.mesh.fsdp=2",))], ids=["groups", "one over four", "fsdp"])
def test_over_eight_devices(group, switches):
    """Groups that are spread over devices: the same losses, and nothing more is sent."""
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"]
                   + " --xla_force_host_platform_device_count=8"}
    run = subprocess.run([sys.executable, "-c", EIGHT, TESTS / "tiny.py", str(group), *switches],
                         env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (sent, *values), (sent_fused, *others) = (line.split("|") for line in
                                              run.stdout.strip().splitlines())
    sent, sent_fused = json.loads(sent), json.loads(sent_fused)
    assert sent_fused.keys() == sent.keys()
    assert all(sent_fused[kind] <= count for kind, count in sent.items())
    np.testing.assert_allclose(list(map(float, others)), list(map(float, values)), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("sizes, dropout", [
    ((257, 257, 768, 12), 0.0), ((577, 577, 768, 12), 0.0), ((257, 257, 192, 3), 0.0),
    ((577, 577, 1024, 16), 0.0), ((257, 257, 1280, 16), 0.0), ((25, 257, 768, 12), 0.1)])
def test_tpus_compile_both_kernels(target, sizes, dropout):
    """To machine code, in groups over four chips, and without anything sent between them."""
    pytest.importorskip("libtpu")
    m, n, width, heads = sizes
    mesh = jax.sharding.Mesh(np.array(find_target(target).devices), "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def arrays(*shapes, dtype=jnp.bfloat16):
        return [jax.ShapeDtypeStruct((4, 8, *shape), dtype, sharding=rows) for shape in shapes]

    sources = arrays((n, 3 * width)) if m == n else arrays((m, width), (n, 2 * width))
    keep = arrays((heads, m, n), dtype=bool) if dropout else [None]

    def loss(sources, keep):
        y = jax.vmap(lambda sources, keep: fused_attention(sources, keep, heads, dropout),
                     spmd_axis_name="data")(sources, keep)
        return jnp.sum(y.astype(jnp.float32) ** 2, axis=(1, 2, 3))

    with placed_on(mesh, ()):
        step = jax.jit(jax.grad(lambda *arrays: jnp.sum(loss(*arrays))), out_shardings=rows)
        text = step.lower(sources, keep[0]).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.slow
def test_twenty_steps_in_bfloat16_differ_by_less_than_seeds_do():
    def losses(attention, seed):
        config = load_config(TESTS / "tiny.py", [
            f"--config.seed={seed}", f"--config.model.attention={attention}",
            "--config.model.dtype=bfloat16"])
        mesh = make_mesh(config.mesh, jax.devices()[:1], groups_of(config))
        parts, found = build(config, mesh), []
        state = parts.create_state()
        for step in range(20):
            batch = shard_batch(noise_batch(config, seed=step), mesh)
            state, metrics = parts.step(state, batch, None)
            found.append([float(metrics[name]) for name in ("itc", "itm", "mlm")])
        return np.array(found)

    plain, fused = losses("plain", 0), losses("fused", 0)
    others = [losses("plain", seed) for seed in (1, 2)]
    spread = np.mean([np.abs(other - plain).mean(axis=0) for other in others], axis=0)
    assert np.isfinite(fused).all() and (fused != plain).any()
    assert (np.abs(fused - plain).mean(axis=0) < 0.2 * spread).all()


@pytest.mark.slow
def test_recordings_of_the_public_code():
    """All cases of ALBEF's models and steps, within the limits of plain attention."""
    names = ("models/test_golden_forward.py", "tasks/test_pretrain.py", "tasks/test_retrieval.py",
             "test_parity.py")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--attention=fused",
                          *(TESTS / name for name in names)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
