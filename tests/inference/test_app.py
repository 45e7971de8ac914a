"""`albef app` in a real browser, and what it says when it cannot start."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time

from PIL import Image
import pytest

from albef_jax.cli import main

gradio = pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 60  # seconds, on two busy cores
FOUND = ".found img"


@contextlib.contextmanager
def serving(*arguments):
    """The address of an app; its process ends with a signal, and leaves nothing behind."""
    command = [sys.executable, "-m", "albef_jax", "app", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"(http://127.0.0.1:\d+) ", line):
                break
        else:
            raise AssertionError("".join(said))
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        process.stderr.close()
        assert process.wait(PATIENCE) == 0 and "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, which logs what it asks for."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


class Browser:
    """What a person does with a page; waits for what it looks for."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address, width=1200, height=900, dark=False):
        self.driver.set_window_size(width, height)
        self.driver.get(address + "/?__theme=dark" * dark)
        self.wait("button[role=tab]")

    def wait(self, selector, number=1):
        """The elements that are seen, once there are so many."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            # In one go: the page may draw itself anew in between.
            seen = self.driver.execute_script(
                "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent)",
                selector)
            if len(seen) >= number:
                return seen
            time.sleep(0.1)
        raise AssertionError(f"{selector}: {self.driver.find_element('tag name', 'body').text}")

    def tab(self, title):
        next(one for one in self.wait("button[role=tab]") if one.text == title).click()

    def write(self, text, number=0):
        field = self.wait("input[type=text], textarea", number + 1)[number]
        field.clear()
        field.send_keys(text)
        return field

    def press(self, action):
        next(one for one in self.wait("button.primary") if one.text == action).click()

    def upload(self, path):
        """Into the picture of the open tab."""
        self.wait("div[role=tabpanel]")[0].find_element(
            "css selector", "input[type=file]").send_keys(str(path))

    def text(self, pattern):
        """Waits until the page says it."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            said = self.driver.find_element("tag name", "body").text
            if re.search(pattern, said):
                return said
            time.sleep(0.1)
        raise AssertionError(f"{pattern}: {said}")

    def hosts(self):
        """Whom it has asked since it was asked last."""
        messages = [json.loads(entry["message"])["message"]
                    for entry in self.driver.get_log("performance")]
        asked = [message["params"]["request"]["url"] for message in messages
                 if message["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))}


@pytest.fixture(scope="module")
def app(workdir, scenes):
    with serving(workdir, "--data", scenes / "pairs.json") as address:
        yield address


@pytest.mark.slow
def test_words_find_pictures_and_a_picture_finds_captions(app, browser, scenes):
    browser.open(app)
    browser.write("a red circle").send_keys("\n")
    assert len(browser.wait(FOUND, 9)) >= 9
    browser.upload(scenes / "a" / "03.png")
    browser.wait("img[alt], .image-frame img")
    browser.press("Search")
    browser.text(r"0\.\d{3}\s+\w+")
    assert browser.hosts() == {app.removeprefix("http://")}


@pytest.mark.slow
def test_a_pair_heat_maps_and_missing_words(app, browser, scenes):
    browser.open(app)
    for title, text, action, expected in (
            ("Match", "a red circle", "Compare", r"Cosine of the features: -?\d"),
            ("Explain", "a red circle", "Show", r"circle \d+%"),
            ("Missing words", "a ___ circle and a ___ square", "Guess", r"2\s+\S+\s+\d+\.\d%")):
        browser.tab(title)
        browser.upload(scenes / "a" / "05.png")
        browser.write(text)
        time.sleep(1)
        browser.press(action)
        browser.text(expected)


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(400, False), (1200, True)])
def test_a_narrow_window_and_a_dark_page(app, browser, width, dark):
    """Nothing is cut off at the side, and text stands out from what it stands on."""
    browser.open(app, width, dark=dark)
    browser.write("a blue square").send_keys("\n")
    browser.wait(FOUND, 3)
    assert browser.driver.execute_script(
        "return document.documentElement.scrollWidth - window.innerWidth") <= 0
    ink = browser.driver.execute_script(
        "return getComputedStyle(document.querySelector('h1')).color")
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    ink, ground = sum(map(int, re.findall(r"\d+", ink)[:3])), sum(picture.getpixel((3, 3)))
    assert (ink > ground + 300) if dark else (ground > ink + 300)


@pytest.mark.slow
def test_the_keyboard_is_enough(app, browser):
    browser.open(app)
    field = browser.write("a green circle")
    for _ in range(40):  # on to the button
        browser.driver.switch_to.active_element.send_keys("\t")
        if browser.driver.switch_to.active_element.text == "Search":
            break
    assert browser.driver.switch_to.active_element.text == "Search", field.text
    browser.driver.switch_to.active_element.send_keys(" ")
    browser.wait(FOUND, 9)


@pytest.mark.slow
def test_what_is_wrong_is_a_sentence_on_the_page(app, browser, tmp_path):
    browser.open(app)
    browser.press("Search")
    browser.text("The query is blank; write what you want to know")
    browser.tab("Match")
    browser.press("Compare")
    browser.text("No picture was given; drop one, or paste it")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"torn")
    browser.upload(tmp_path / "torn.png")
    browser.write("a circle")
    time.sleep(1)
    browser.press("Compare")
    browser.text("cannot be read")


@pytest.mark.slow
def test_a_file_of_200_mb_is_refused(app, browser, tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(200 * 2**20)
    browser.open(app)
    browser.tab("Match")
    browser.upload(tmp_path / "huge.png")
    browser.text("(?i)(exceed|maximum|too large)")


@pytest.mark.slow
def test_nothing_is_written_but_into_its_own_folder_which_is_gone_at_the_end(
        workdir, scenes, browser, tmp_path, monkeypatch):
    for name in ("TMPDIR", "HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    with serving(workdir, "--data", scenes) as address:
        browser.open(address)
        browser.write("a circle").send_keys("\n")
        browser.wait(FOUND, 9)
        (folder,) = [one for one in (tmp_path / "TMPDIR").iterdir() if one.name != "matplotlib"]
        assert folder.name.startswith("albef_app_") and any(folder.rglob("*.*"))
    assert not folder.exists()
    left = [path for path in (tmp_path / "HOME").rglob("*") if path.is_file()]
    assert not [path for path in left if "matplotlib" not in str(path)
                and "fontconfig" not in str(path)], left


@pytest.mark.parametrize("arguments, sentence", [
    (["none"], "none"), (["RUN", "--data", "none"], "none is neither a folder of images nor"),
    (["RUN", "--data", "EMPTY"], "holds no image"),
    (["RUN", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
])
def test_what_keeps_it_from_starting_is_one_sentence(workdir, tmp_path, capsys, arguments,
                                                     sentence):
    places = {"RUN": str(workdir), "EMPTY": str(tmp_path)}
    assert main(["app", *(places.get(one, one) for one in arguments), "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") <= 2


def test_without_gradio_it_says_how_to_get_it(workdir, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("gradio", "albef_jax.app."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(workdir)]) == 2
    assert "pip install 'albef_jax[app]'" in capsys.readouterr().err
