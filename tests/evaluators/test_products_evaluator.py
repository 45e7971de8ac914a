"""Products found, classified and clustered: counted as the release counts, by any subset."""

from pathlib import Path

from etils import epath
import jax
import numpy as np
import pytest

from albef_jax.config import default_config, load_config
from albef_jax.data.sources import make_source
from albef_jax.data.sources.scenes_products import LENGTHS, WIDTHS
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import make_evaluator
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.product_cards import card, hidden_pair
from albef_jax.evaluators.products import ProductRetrieval, cluster_scores, unit
from albef_jax.evaluators.ranked import ranked_scores, rankings, retrieval_scores
from albef_jax.models.scale import MODALITIES, withheld
from albef_jax.parallel.mesh import make_mesh
from albef_jax.report import write_page
from albef_jax.tasks import make_task
from parity_report import Report
from parity_scale_metrics import run_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "scale_metrics"
TASK = f"{Path(__file__).with_name('product_task.py')}:Sums"
SIZE = 44


@pytest.fixture(scope="module")
def config():
    config = default_config(TASK).unlock()
    for name in LENGTHS:
        config.data[f"{name}_length"], config.data[f"{name}_width"] = LENGTHS[name], WIDTHS[name]
    return config


@pytest.fixture(scope="module")
def source():
    return make_source(dict(kind="scenes_products", split="heldout", size=SIZE))


@pytest.fixture(scope="module")
def tokenizer(config, source):
    config.data.vocab_size = 300
    return make_tokenizer(config.data, source)


@pytest.fixture(scope="module")
def forward(config):
    task = make_task(config)
    return Forward(task.init(jax.random.key(0)), task.predict_fns(),
                   make_mesh(devices=jax.devices()[:1]))


@pytest.fixture
def make(config, source, tokenizer):
    """`make(kind, option=...)` -> an evaluator of the products."""
    def make(kind, **options):
        return make_evaluator("dev", {"kind": kind, "source": source, "batch_size": 16, **options},
                              config, tokenizer)

    return make


def arrays_of(evaluator):
    return evaluator._rows.data.some(list(range(SIZE)))


def test_lists_and_scores_are_those_of_the_release(capsys):
    report = Report()
    run_metrics(GOLDEN, {}, report)
    assert report.missed == 0 and report.compared == 48, capsys.readouterr().out


def test_the_example_of_the_specification():
    # The ranking a, d, b, c with b and c relevant: only two places count.
    scores = ranked_scores(np.array([[False, False, True, True]]), np.array([4]), np.array([2]))
    assert scores["K5"] == scores["K10"] == 2 and scores["map5"] == scores["map10"] == 0
    four = ranked_scores(np.array([[False, False, True, True]]), np.array([4]), np.array([4]))
    assert four["map5"][0] == pytest.approx((1 / 3 + 2 / 4) / 2) and four["prec5"][0] == 0.5


def test_of_equal_scores_the_lower_row_comes_first_and_the_query_is_left_out(monkeypatch):
    gallery = np.array([[1.0], [2], [2], [0], [2]])
    queries, own = np.array([[1.0], [2], [2]]), np.array([0, 1, -1])
    wanted = [[1, 2, 4], [2, 4, 0], [1, 2, 4]]
    assert rankings(queries, gallery, own, listed=3).tolist() == wanted
    monkeypatch.setattr("albef_jax.evaluators.ranked.AT_ONCE", 1)
    assert rankings(queries, gallery, own, listed=3).tolist() == wanted
    assert rankings(queries[:1], gallery[:2], own[:1]).tolist() == [[1, -1]]


def test_each_subset_sees_itself_alone_and_the_data_is_read_once(make, forward, monkeypatch):
    evaluator = make("product_retrieval", subsets=("t", "tip", "va"))
    evaluator_arrays = arrays_of(evaluator)
    reads, get = [], type(evaluator.source).get
    monkeypatch.setattr(type(evaluator.source), "get", lambda self, index, field: (
        reads.append((index, field)), get(self, index, field))[1])
    values = dict(evaluator.run(forward.with_params(forward.params)))
    assert reads and len(reads) == len(set(reads))
    labels = evaluator.names_of("fine")
    for subset in ("t", "tip", "va"):
        encoded = forward["encode"](forward.params, **withheld(evaluator_arrays, subset))
        summed = np.asarray(sum(encoded[f"joint_{letter}"] for letter in subset))
        ranked = rankings(summed, summed, np.arange(SIZE))
        for name, value in retrieval_scores(ranked, labels, labels).items():
            assert values[f"fine_{subset}_{name}"] == pytest.approx(value)
    assert list(values) == evaluator.names()
    assert values["fine_map1"] == values["fine_va_map1"]


def test_the_release_sums_up_what_was_seen_together(make, forward):
    evaluator = make("product_retrieval", subsets=("ti",), inputs="all")
    found = evaluator.encode(forward.with_params(forward.params), "ti")
    encoded = forward["encode"](forward.params, **arrays_of(evaluator))
    np.testing.assert_allclose(found, encoded["joint_t"] + encoded["joint_i"], rtol=2e-5, atol=1e-5)


def test_the_default_subsets_add_a_modality_each(make):
    assert make("product_retrieval").subsets == ["t", "ti", "tip", "tipv", "tipva"]


def test_one_modality_finds_another(make, forward):
    evaluator = make("product_retrieval", subsets=("t",), crossed=("iv",))
    values = dict(evaluator.run(forward.with_params(forward.params)))
    source, labels = evaluator.source, evaluator.names_of("fine")
    has = [[name in source.modalities(i) for i in range(SIZE)] for name in ("regions", "video")]
    sides = []
    for letter, there in zip("iv", has):
        encoded = forward["encode"](forward.params, **withheld(arrays_of(evaluator), letter))
        sides.append((unit(np.asarray(encoded[f"joint_{letter}"]))[there], labels[there]))
    ranked = rankings(sides[0][0], sides[1][0])
    expected = retrieval_scores(ranked, sides[0][1], sides[1][1])
    assert values["cross_iv_map5"] == pytest.approx(expected["map5"])


def test_queries_and_gallery_of_lists(make, forward, tmp_path):
    names = [make("product_retrieval").source.name(i) for i in range(SIZE)]
    (tmp_path / "q.txt").write_text("\n".join(names[:8]))
    (tmp_path / "g.json").write_text(str(names[4:]).replace("'", '"'))
    evaluator = make("product_retrieval", subsets=("t",), queries=str(tmp_path / "q.txt"),
                     gallery=str(tmp_path / "g.json"))
    values = dict(evaluator.run(forward.with_params(forward.params)))
    found, labels = evaluator.encode(forward, "t"), evaluator.names_of("coarse")
    ranked = rankings(found[:8], found[4:], np.array([-1] * 4 + [0, 1, 2, 3]))
    positives = dict(zip(*np.unique(labels, return_counts=True)))
    expected = retrieval_scores(ranked, labels[:8], labels[4:], positives)
    assert values["coarse_t_prec10"] == pytest.approx(expected["prec10"])
    assert "8 queries, 40 products" in evaluator.description
    (tmp_path / "q.txt").write_text("nobody")
    with pytest.raises(UserError, match="has 1 that no product has, such as .'nobody'."):
        make("product_retrieval", queries=str(tmp_path / "q.txt"))


def test_a_row_of_the_table_for_each_subset(make, forward):
    evaluator = make("product_retrieval", subsets=("t", "ti"), crossed=("ti",))
    values = dict(evaluator.run(forward.with_params(forward.params)))
    rows, groups = ProductRetrieval.table(values)
    assert [title for title, _ in rows] == ["title", "title + regions", "title finds regions"]
    assert groups[0].columns == ("mAP@1", "mAP@5", "mAP@10", "Prec@1", "Prec@5", "Prec@10")
    assert rows[1][1][1][0] == values["fine_ti_map1"]
    assert ProductRetrieval.label("fine_ti_prec10") == "fine ti Prec@10"
    queries = evaluator.examples(forward, None)["products"]["queries"]
    assert len(queries) == 6 and all(len(query["found"]) == 6 and query["name"] not in [
        found["name"] for found in query["found"]] for query in queries)


def test_a_card_has_what_a_product_has(source):
    for row in range(SIZE):
        shown, has = card(source, row), source.modalities(row)
        assert shown["has"] == list(has)
        assert (shown["title"] is not None) == ("title" in has)
        assert (shown["picture"] is not None) == ("regions" in has)
        assert bool(shown["table"]) == ("table" in has)


@pytest.mark.parametrize("last, turn, pair", [
    (0, 0, 0), (0, 1, 1), (0, 2, 0), (6, 1, 1), (4, 1, 0)])
def test_the_value_that_is_hidden_is_whole_and_short(last, turn, pair):
    """Pair 2 has four words; the last number is that of the entity at which the table was cut."""
    entities = np.array([0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 6, 0])
    if last:
        entities = entities[:list(entities).index(last) + 1]
    assert hidden_pair(entities, 3, turn) == pair


@pytest.mark.slow
def test_the_page_shows_products_what_they_find_and_what_the_model_trusts(tmp_path, tokenizer):
    config = load_config("tests/tiny_scale.py", [])
    for name in LENGTHS:
        config.data[f"{name}_length"], config.data[f"{name}_width"] = LENGTHS[name], WIDTHS[name]
    config.data.update(text_length=12, table_length=20)
    config.model.update(max_positions=40, max_video=20, max_audio=40, max_jct=120,
                        vocab_size=tokenizer.vocab_size)
    source = make_source(dict(kind="scenes_products", split="heldout", size=SIZE))
    config.evals.dev = dict(kind="product_retrieval", source="scenes_products")
    task = make_task(config)
    model = Forward(task.init(jax.random.key(0)), task.predict_fns(),
                    make_mesh(devices=jax.devices()[:1]))
    dev = make_evaluator("dev", {"kind": "product_retrieval", "source": source}, config, tokenizer)
    section = dev.examples(model, None)["products"]
    assert section["swapped"] == "regions" and section["letters"] == [*MODALITIES.values()]
    for query in section["queries"]:
        before, after = map(np.array, query["scores"])
        assert before.shape == (5, 5) and np.abs(before - after)[1].max() > 1e-4
        if query["entity"]:
            words = " ".join(guess["word"] for guess in query["entity"]["guesses"])
            assert words == query["table"][query["entity"]["pair"]][1]
            assert all(len(guess["model"]) == 5 for guess in query["entity"]["guesses"])
    page = write_page(epath.Path(tmp_path), config, {"dev": dev}, model, {}).read_text()
    for query in section["queries"]:
        assert query["title"] is None or query["title"] in page
    assert page.count("<table class=\"scores\">") == 12 and "regions of another product" in page


def test_categories_by_subset(make, forward):
    evaluator = make("product_classification", subsets=("t", "tipva"))
    values = dict(evaluator.run(forward.with_params(forward.params)))
    assert list(values) == evaluator.names()
    labels = np.array([evaluator.source.label(i) for i in range(SIZE)])
    arrays = arrays_of(evaluator)
    for subset in ("t", "tipva"):
        logits = forward["classify"](forward.params, **withheld(arrays, subset))
        right = np.mean(np.argmax(logits, axis=1) == labels)
        assert values[f"accuracy_{subset}"] == pytest.approx(100 * right)
    assert values["majority"] == pytest.approx(100 * np.bincount(labels).max() / SIZE)
    assert type(evaluator).label("accuracy_ti") == "accuracy: title + regions"


def test_clusters(make, forward):
    pytest.importorskip("sklearn")
    evaluator = make("product_clustering", subsets=("t", "tip"), seeds=2, level="fine")
    values = dict(evaluator.run(forward.with_params(forward.params)))
    assert list(values) == evaluator.names() and 0 < values["nmi_t"] < 100
    rows, labels = np.repeat(np.eye(3) * 9, 4, axis=0), np.repeat([0, 1, 2], 4)
    assert cluster_scores(rows, labels, 1) == {"nmi": pytest.approx(100),
                                               "purity": pytest.approx(100)}
    # Two points with three classes of 1, 1 and 2: clusters of 2 are half and wholly pure.
    rows = np.array([[0.0], [0], [9], [9]])
    half = cluster_scores(rows, np.array([0, 1, 1, 1]), 1)
    assert half["purity"] == pytest.approx(75) and 0 < half["nmi"] < 100


@pytest.mark.parametrize("kind, options, sentence", [
    ("product_retrieval", dict(subsets=("tx",)), "got the modalities 'tx'; write some of the "
                                                 "letters tipva"),
    ("product_retrieval", dict(subsets=("tt",)), "got the modalities 'tt'"),
    ("product_retrieval", dict(crossed=("t",)), "The option crossed has 't'; write two letters"),
    ("product_retrieval", dict(inputs="none"), "it must be 'subset' or 'all'"),
    ("product_retrieval", dict(queries="nowhere.txt"), "The list of ids nowhere.txt cannot be"),
])
def test_options_that_mean_nothing(make, kind, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(kind, **options)


def test_products_without_categories(config, tokenizer, tmp_path):
    (tmp_path / "rows.json").write_text('[{"id": 1, "title": "red", "table": [["a", "b"]]}]')
    block = {"kind": "product_retrieval", "subsets": ("tp",),
             "source": dict(kind="products", files=str(tmp_path / "rows.json"))}
    config = config.copy_and_resolve_references()
    config.model.modalities = "tp"
    with pytest.raises(UserError, match="has no field 'coarse'; give its products a category"):
        make_evaluator("dev", block, config, tokenizer)
