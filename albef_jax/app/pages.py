"""The page of a model: a tab for each thing that it can do."""

from collections.abc import Callable
import functools
import os
from typing import NamedTuple

import gradio

import albef_jax
from albef_jax.app.looks import boxed, label, picture_of, table_of_hits
from albef_jax.data.sources import make_source, parse_source
from albef_jax.errors import UserError, first_line
from albef_jax.evaluators.heat import overlay, scaled, word_shares
from albef_jax.evaluators.product_cards import card
from albef_jax.inference.answers import AnswerModel, ClassModel
from albef_jax.inference.collection import Features, open_collection
from albef_jax.inference.commands import encode_collection, fingerprint
from albef_jax.inference.features import FeatureModel
from albef_jax.inference.inputs import not_blank
from albef_jax.inference.products import ProductModel
from albef_jax.inference.regions import RegionModel
from albef_jax.models.scale import MODALITIES
from albef_jax.parallel.mesh import use_compile_cache

MOST = 24  # results of a search
LISTED = 1000  # examples that can be chosen from a list
RERANKED = 64  # images whose match with a text is asked for one search
SIDE = 320  # pixels of a picture that is shown


class Tab(NamedTuple):
    """What stands on the left, what the button says and does, and what stands on the right."""

    title: str
    inputs: Callable  # makes a list of components
    action: str
    function: Callable  # of the inputs' values, to those of the outputs
    outputs: Callable  # makes a list of components
    note: str = ""


def page_of(workdir, data, image_root, options):
    """The page for a model and what it searches; see `albef_jax.app.app`."""
    use_compile_cache()
    model = albef_jax.load(workdir, **options)
    makers = next((makers for kind, makers in TABS.items() if isinstance(model, kind)), ())
    tabs = [tab for make in makers if (tab := make(model, data, image_root))]
    if not tabs:
        needs = "; name some with --data" if makers else ", and there is no tab for it"
        raise UserError(f"The app shows what a model of the task {model.config.task!r} makes of "
                        f"data{needs}.")
    name = os.path.basename(os.path.abspath(workdir))
    with gradio.Blocks(title=f"{name} · albef_jax", analytics_enabled=False) as page:
        gradio.Markdown(f"# {name}\n{', '.join(model.task.facts(model.config))}")
        with gradio.Tabs():
            for tab in tabs:
                with gradio.Tab(tab.title):
                    lay_out(tab)
    return page


def lay_out(tab):
    """Inputs and a button on the left, outputs on the right; Enter in a line presses the button."""
    if tab.note:
        gradio.Markdown(tab.note)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            inputs = tab.inputs()
            button = gradio.Button(tab.action, variant="primary")
        with gradio.Column(scale=3, min_width=280):
            outputs = tab.outputs()
    lines = [one.submit for one in inputs if isinstance(one, gradio.Textbox) and one.max_lines == 1]
    for trigger in (button.click, *lines):
        trigger(said(tab.function), inputs, outputs, api_name=False)


def said(function):
    """A function whose errors are sentences on the page."""
    @functools.wraps(function)
    def of_page(*inputs):
        try:
            return function(*inputs)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False, duration=None) from None
        except (OSError, ValueError) as error:
            raise gradio.Error(f"That did not work: {first_line(error)}.", duration=None) from None

    return of_page


class Picture(gradio.Image):
    """A picture as the file that was uploaded: it is decoded where all others are."""

    is_template = True  # it looks like its parent

    def preprocess(self, payload):
        return payload and payload.path


def image_input(name="Picture"):
    """A picture to be uploaded, or pasted."""
    return Picture(label=name, type="filepath", image_mode=None, height=SIDE * 3 // 4,
                   sources=["upload", "clipboard"], buttons=[])


def text_input(name, example):
    """A line of text."""
    return gradio.Textbox(label=name, placeholder=example, max_lines=1)


def gallery(name):
    """Pictures with a line under each."""
    return gradio.Gallery(label=name, columns=3, object_fit="contain", height="auto",
                          format="jpeg", interactive=False, buttons=[], elem_classes="found")


def wanted_image(image):
    """The file of an uploaded picture; UserError without one."""
    if not image:
        raise UserError("No picture was given; drop one, or paste it.")
    return image


def verdict(name):
    """Shares of what is said, as bars."""
    return gradio.Label(label=name)


def table(name, *columns):
    """Rows of text."""
    return gradio.Dataframe(headers=[*columns], label=name, interactive=False, buttons=[],
                            wrap=True)


# ---- models that compare images and texts --------------------------------------------------


def search(model, data, image_root):
    """A collection, by text or by picture."""
    if data is None:
        return None
    features = indexed(model, data, image_root)
    images, captions = features.index("image"), features.index("text")
    has_captions = len(captions.names) > 0

    def find(text, image, count, rerank):
        if image and has_captions:
            return [], table_of_hits(model.search(captions, image=image, k=int(count)))
        hits = (model.search(images, image=image, k=int(count)) if image else
                model.search(images, text=text or "", k=int(count),
                             rerank=max(RERANKED, int(count)) if rerank else 0))
        found = [(picture_of(images.items[hit.row], SIDE), label(hit)) for hit in hits]
        return (found, []) if has_captions else found

    return Tab("Search", lambda: [
        text_input("Words", "a dog runs through the grass"),
        image_input("or a picture, which finds " + (
            "captions" if has_captions else "pictures like it")),
        gradio.Slider(1, MOST, 9, step=1, label="Results", buttons=[]),
        gradio.Checkbox(label=f"Let the matching head choose among the {RERANKED} most similar "
                              "pictures (slower)")],
        "Search", find, lambda: [gallery("Found"), *(
            [table("Captions", "similarity", "caption")] if has_captions else [])],
        f"{len(images.names):,} pictures and {len(captions.names):,} captions of "
        f"{os.path.basename(features.source)}")


def indexed(model, data, image_root):
    """Features of what is searched, of this very model; UserError where they are of another."""
    if not str(data).endswith(".npz"):
        return encode_collection(model, open_collection(data, image_root))
    features = Features.load(data)
    if features.model != fingerprint(model.params):
        raise UserError(f"{data} was made by another model or another checkpoint; run `albef "
                        "embed` again.")
    return features


def match(model, data, image_root):
    """One picture and one text."""
    def compare(image, text):
        scores = model.pair_scores([wanted_image(image)], [not_blank(text, "text")], [0])
        (itm,), (itc,) = scores["itm"].tolist(), scores["itc"].tolist()
        return {"match": itm, "no match": 1 - itm}, f"Cosine of the features: {itc:.3f}"

    return Tab("Match", lambda: [image_input(), text_input("Words", "two children on a beach")],
               "Compare", compare, lambda: [verdict("They belong together"), gradio.Markdown()])


def explain(model, data, image_root):
    """Where the model looks."""
    modes = {"itm": "the matching head, word by word", "itc": "the similarity"}
    known = [(name, mode) for mode, name in modes.items() if f"{mode}_heat" in model.forward]

    def look(image, text, mode):
        picture = scaled(picture_of(wanted_image(image)), SIDE)
        found = model.explain(picture, not_blank(text, "text"), mode)
        return [(overlay(picture, found.heat), f"all words: {found.score:.2f}"), *(
            (overlay(picture, heat), f"{word} {100 * share:.0f}%")
            for word, heat, share in zip(found.words, found.word_heat, word_shares(found)))]

    return known and Tab(
        "Explain", lambda: [image_input(), text_input("Words", "a dog runs through the grass"),
                            gradio.Radio(known, value=known[0][1], label="Ask")],
        "Show", look, lambda: [gallery("Where it looks")])


def complete(model, data, image_root):
    """Words that are missing."""
    def guess(image, text):
        found = model.complete(wanted_image(image), text)
        return [[number, word, f"{share:.1%}"] for number, words in enumerate(found, start=1)
                for word, share in words]

    return "mlm_logits" in model.forward and Tab(
        "Missing words", lambda: [image_input(), text_input(
            "Words, with ___ or [MASK] where one is missing", "a ___ runs through the grass")],
        "Guess", guess, lambda: [table("Guesses", "gap", "word", "probability")])


# ---- models that answer and classify -------------------------------------------------------


def ask(model, data, image_root):
    """A question, and answers written or chosen."""
    def answer(image, question, answers):
        choices = [line.strip() for line in answers.splitlines() if line.strip()]
        return shares(model.answer(wanted_image(image), question, choices or None))

    return model.config.data.source.kind != "captions" and Tab(
        "Ask", lambda: [image_input(), text_input("Question", "what is on the table?"),
                        gradio.Textbox(label="Answers to choose from, one per line", lines=4,
                                       placeholder="none: the model writes one")],
        "Ask", answer, lambda: [verdict("Answers")])


def caption(model, data, image_root):
    """What a picture shows."""
    return model.config.data.source.kind == "captions" and Tab(
        "Caption", lambda: [image_input()], "Write",
        lambda image: shares(model.caption(wanted_image(image))), lambda: [verdict("Captions")])


def shares(answers):
    """Text -> probability."""
    return {text or "(nothing)": probability for text, probability in answers}


def classify(model, data, image_root):
    """A text about one picture or two."""
    views = getattr(model.task, "views", 1)

    def judge(text, *images):
        return model.classify([*map(wanted_image, images)], not_blank(text, "text"))

    return Tab("Classify", lambda: [text_input("Words", "there is a dog"), *(
        image_input(f"Picture {number}") for number in range(1, views + 1))],
        "Judge", judge, lambda: [verdict("Verdict")])


# ---- models of products, and of regions ----------------------------------------------------


def products(model, data, image_root):
    """Products by some of their modalities."""
    if data is None:
        return None
    given, trained = parse_source(str(data)), model.config.data.source
    source = make_source({**trained, **given} if trained.kind == given["kind"] else given)
    known = model.config.model.modalities
    rows = {source.name(row): row for row in range(len(source))}
    index = functools.cache(lambda seen: model.index_products(source, modalities=seen,
                                                              progress=True))
    index(known)

    def find(title, product, modalities, count):
        seen = "".join(letter for letter in known if letter in modalities)
        if title:
            hits = model.search(index(known), {"title": title}, "t", int(count))
        elif product:
            hits = model.search(index(seen or known), rows[product], k=int(count))
        else:
            raise UserError("No query was given; write a title, or choose a product.")
        cards = [(hit, card(source, hit.row)) for hit in hits]
        return ([(scaled(one["picture"], SIDE), label(hit)) for hit, one in cards
                 if one["picture"]],
                [[f"{hit.similarity:.3f}", hit.name, one["title"] or "",
                  ", ".join(map(": ".join, one["table"]))] for hit, one in cards])

    return Tab("Products", lambda: [
        text_input("Title", "red mug"),
        gradio.Dropdown([None, *rows][:LISTED], label="or a product"),
        gradio.CheckboxGroup([(MODALITIES[letter], letter) for letter in known], value=[*known],
                             label="Compared by"),
        gradio.Slider(1, MOST, 9, step=1, label="Results", buttons=[])],
        "Search", find, lambda: [gallery("Pictures"),
                                 table("Found", "similarity", "product", "title", "table")],
        f"{len(source):,} products")


def regions(model, data, image_root):
    """Texts about pictures whose regions are known."""
    if data is None:
        return None
    source = make_source(str(data))
    rows = {source.name(row): row for row in range(min(len(source), LISTED))}

    def compare(name, text):
        found = source.get(rows[name], "regions")
        (probability,) = model.match(found, not_blank(text, "text")).tolist()
        return boxed(source, rows[name], found), {"match": probability,
                                                  "no match": 1 - probability}

    return Tab("Regions", lambda: [gradio.Dropdown([*rows], label="Picture"),
                                   text_input("Words", "a red star left of a ring")],
               "Compare", compare, lambda: [
                   gradio.Image(label="Its regions", type="pil", interactive=False, buttons=[]),
                   verdict("They belong together")])


TABS = {FeatureModel: (search, match, explain, complete), AnswerModel: (ask, caption),
        ClassModel: (classify,), ProductModel: (products,), RegionModel: (regions,)}
