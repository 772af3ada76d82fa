"""The dashboard as people use it: Chromium, the whole service, a real if tiny model. One story, told in order."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from tests.dashboard.browser import CHROMIUM, chromium, fresh_page, sign_in
from tests.e2e.service import Service, as_lines, log_of, served, train_lines, write_catalogue

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

AXE = Path(__file__).parents[1] / "data" / "axe.min.js"
#: Long enough to be watched, reloaded and outlived by the API; some 30 seconds.
WATCHED_STEPS = 400


@dataclass
class Seen:
    """What the browser has asked for, and what it complained of."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    #: While the API is killed on purpose, failed requests are meant.
    forgiving: bool = False

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not self.forgiving:
            self.complaints.append(message.text)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("dashboard")
    with served(folder / "home", write_catalogue(folder, tiny_llama), HONE_POLL_SECONDS="0.5") as running:
        yield running
        running.stop()


@pytest.fixture(scope="module")
def url(service: Service) -> str:
    return str(service.base_url).removesuffix("/v1")


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page(service: Service, browser: Browser, seen: Seen) -> Iterator[Page]:
    with fresh_page(browser) as opened:
        seen.watch(opened)
        yield opened


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Ids that later parts of the story need."""
    return {}


def drawn(page: Page) -> int:
    """The last step that the curves show."""
    return int(page.locator("[data-charts]").get_attribute("data-drawn") or 0)


def wait_for_step(page: Page, step: int, seconds: float = 30) -> None:
    page.wait_for_function(
        "step => Number(document.querySelector('[data-charts]')?.dataset.drawn || 0) >= step",
        arg=step,
        timeout=seconds * 1000,
    )


def upload(page: Page, url: str, name: str, content: bytes, purpose: str = "fine-tune") -> None:
    page.goto(f"{url}/files")
    page.get_by_label("File", exact=True).set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})
    page.get_by_label("Purpose", exact=True).select_option(purpose)
    page.get_by_role("button", name="Upload").click()


def test_sign_in(page: Page, service: Service, url: str):
    page.goto(f"{url}/files")
    expect(page).to_have_url(re.compile(r"/sign-in\?next=/files$"))
    page.get_by_label("API key").fill("hone-not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("opens nothing here")
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Files")
    assert service.key not in page.url
    kept = page.evaluate("() => JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
    assert service.key not in kept
    assert "hone_session" not in kept
    [cookie] = [cookie for cookie in page.context.cookies() if cookie["name"] == "hone_session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")


def test_empty_pages_say_what_to_do(page: Page, url: str):
    page.goto(url)
    page.get_by_role("link", name="Upload a dataset").click()
    expect(page.get_by_role("heading", name="No files yet")).to_be_visible()
    page.goto(f"{url}/jobs/new")
    expect(page.get_by_role("link", name="Upload one")).to_be_visible()
    page.goto(f"{url}/evals")
    expect(page.get_by_role("heading", name="No evaluations yet")).to_be_visible()
    page.get_by_role("link", name="Evaluate a model").click()
    expect(page.get_by_role("heading", name="First, questions")).to_be_visible()


def test_a_broken_file_is_refused_with_its_lines(page: Page, url: str):
    lines = train_lines(30).splitlines()
    lines[11] = json.dumps({"instruction": "<script>alert(1)</script>", "output": ""}).encode()
    lines[17] = b"{not json"
    upload(page, url, "broken<b>.jsonl", b"\n".join(lines))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This file was not taken")
    expect(alert.get_by_role("row", name=re.compile(r"^12 output .*empty"))).to_be_visible()
    expect(alert.get_by_role("row", name=re.compile(r"^18 .*not JSON"))).to_be_visible()
    page.get_by_role("link", name="all", exact=True).click()
    expect(page.get_by_role("heading", name="No files yet")).to_be_visible()


def test_a_good_file_shows_what_is_in_it(page: Page, url: str, made: dict[str, str]):
    hostile = {"instruction": "<img src=x onerror=alert(1)> & <b>", "output": "print('</pre><script>x</script>')"}
    upload(page, url, "sums.jsonl", train_lines(120) + as_lines([hostile, hostile]))
    expect(page.get_by_role("heading", level=1)).to_have_text("sums.jsonl")
    histogram = page.get_by_role("img", name=re.compile("Histogram of 122 samples"))
    histogram.wait_for(timeout=60_000)
    assert histogram.locator("rect").count() >= 3
    expect(page.get_by_text("Doubled samples").locator("..")).to_contain_text("1")
    tokens = page.get_by_label("The sample's tokens")
    expect(tokens).to_contain_text("Write a function that adds 0")
    trained = "".join(tokens.locator(".trained").all_text_contents())
    assert trained.startswith("def add_0(x):")
    assert "Write a function" not in trained
    page.get_by_label("Sample", exact=True).fill("121")
    page.keyboard.press("Enter")
    expect(tokens).to_contain_text("<img src=x onerror=alert(1)> & <b>")
    page.get_by_label("Longest sample, tokens").fill("40")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Cut at", exact=True).locator("..")).to_contain_text("40 tokens as asked")
    made["file"] = page.url.split("/files/")[1].split("?")[0]


def test_a_job_is_started_from_the_form(page: Page, url: str, made: dict[str, str]):
    page.goto(f"{url}/files/{made['file']}")
    page.get_by_role("link", name="Train on it").click()
    page.get_by_label("Suffix").fill("watched")
    page.get_by_label("Epochs").fill("many")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_label("Epochs")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Epochs").fill("50")
    page.get_by_label("Batch size").first.fill("4")
    page.locator("summary", has_text="Training").click()
    page.get_by_label("Precision").select_option("float32")
    page.get_by_label("Max steps").fill(str(WATCHED_STEPS))
    page.keyboard.press("Tab")
    estimate = page.get_by_role("complementary", name="Estimate")
    steps = estimate.locator("dl div", has_text="Steps")
    expect(steps).to_contain_text(str(WATCHED_STEPS), timeout=60_000)
    expect(estimate.get_by_text("Memory")).to_contain_text("MB at the peak")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("watched")
    made["job"] = page.url.split("/jobs/")[1]


def test_its_curve_moves_and_a_reload_loses_nothing(
    page: Page, url: str, service: Service, seen: Seen, made: dict[str, str]
):
    wait_for_step(page, 5, seconds=60)
    before = drawn(page)
    wait_for_step(page, before + 20)
    page.reload()
    wait_for_step(page, before + 20)
    steps = page.evaluate(
        f"fetch('/jobs/{made['job']}/metrics.json').then(r => r.json()).then(r => r.steps.map(s => s.step))"
    )
    assert steps == list(range(steps[-1] + 1)), "every step, from the base model's own loss on"
    # The API dies and comes back; the page stays as it is, and its curve goes on.
    seen.forgiving = True
    page.evaluate("document.body.dataset.mark = 'the same page'")
    service.kill("api")
    wait_for_step(page, drawn(page) + 20, seconds=60)
    assert page.locator("body").get_attribute("data-mark") == "the same page"
    expect(page.locator("[data-tile=valid_loss] dd")).not_to_have_text("–")


def test_one_is_run_again_with_changes_paused_and_cancelled(page: Page, url: str, made: dict[str, str]):
    page.get_by_role("link", name="Run again with changes").click()
    expect(page.get_by_label("Max steps")).to_have_value(str(WATCHED_STEPS))
    page.get_by_label("Suffix").fill("stopped")
    page.get_by_label("Max steps").fill("100000")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_text("Next in the queue")).to_be_visible()
    made["stopped"] = page.url.split("/jobs/")[1]
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("h1 .pill")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1 .pill")).to_have_text("queued")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("h1 .pill")).to_have_text("cancelled")
    page.goto(f"{url}/jobs/{made['job']}")


def test_it_ends_and_its_adapter_can_be_downloaded(page: Page, service: Service, seen: Seen, made: dict[str, str]):
    expect(page.get_by_role("heading", name="Results")).to_be_visible(timeout=90_000)
    seen.forgiving = False
    wait_for_step(page, WATCHED_STEPS)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download adapter").click()
    content = Path(download.value.path()).read_bytes()
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert "adapter_model.safetensors" in names, log_of(service, "worker")
    expect(page.get_by_label("PEFT", exact=True)).to_contain_text("PeftModel.from_pretrained")
    page.locator("summary", has_text="Data").click()
    expect(page.get_by_role("row", name=re.compile("max seq length"))).to_contain_text("90th percentile")


def test_an_evaluation_is_started_from_the_form(page: Page, url: str, made: dict[str, str]):
    items = [
        {
            "item": {
                "question": f"Write a function that adds {n}",
                "completion": f"def add_{n}(x):\n    return x + {n}\n",
            }
        }
        for n in range(12)
    ]
    upload(page, url, "items.jsonl", as_lines(items), "evals")
    page.goto(f"{url}/jobs/{made['job']}")
    page.get_by_role("link", name="Evaluate", exact=True).click()
    model = page.get_by_label("Model", exact=True)
    assert ":watched:" in model.input_value()
    assert page.get_by_label("Ask its base model too").is_checked()
    questions = page.get_by_label("Questions")
    expect(questions).to_have_value("")
    expect(questions).to_have_accessible_description(re.compile("has no validation file"))
    page.get_by_role("button", name="Start the evaluation").click()
    assert questions.evaluate("element => element.validity.valueMissing"), "the browser itself asks for it"
    questions.select_option(label="items.jsonl · 12 samples")
    page.get_by_label("How many").fill("all")
    page.locator("summary", has_text="How answers are made").click()
    page.get_by_label("Longest answer").fill("24")
    page.get_by_label("Name").fill("Watched on sums")
    page.keyboard.press("Enter")
    number = page.get_by_label("How many")
    expect(number).to_be_focused()
    expect(number).to_have_attribute("aria-invalid", "true")
    expect(number).to_have_accessible_description(re.compile("no number of samples from 1 to 10,000"))
    expect(page.get_by_role("alert")).to_contain_text("no number of samples")
    expect(page.get_by_label("Longest answer")).to_have_value("24")
    number.fill("11")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Watched on sums")
    made["run"] = page.url.removeprefix(url)


def test_what_does_not_count_for_a_choice_is_not_shown(page: Page, url: str):
    page.goto(f"{url}/evals/new")
    expect(page.get_by_label("Language")).to_be_visible()
    page.get_by_label("By", exact=True).select_option("string_check:eq")
    expect(page.get_by_label("Language")).to_be_hidden()
    expect(page.get_by_label("Passes from")).to_be_hidden()
    page.get_by_label("Evaluation", exact=True).select_option(label="CodeBLEU on items.jsonl")
    expect(page.get_by_label("By", exact=True)).to_be_hidden()
    expect(page.get_by_label("Expected answer")).to_be_hidden()


def test_jobs_are_compared(page: Page, url: str):
    page.goto(url)
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare chosen jobs").click()
    page.wait_for_selector("[data-compare-charts][data-drawn]")
    expect(page.get_by_role("row", name=re.compile("max steps"))).to_contain_text("100000")
    assert page.locator(".uplot canvas").count() == 2


def test_the_keyboard_is_enough(page: Page, url: str):
    page.goto(url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''").strip()
        )
    for name in ("Jobs", "Evaluations", "Files", "New job", "stopped", "watched", "running"):
        assert name in reached, reached
    outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlined == "solid"


def test_dark_can_be_chosen_and_is_kept(page: Page, url: str):
    page.get_by_role("button", name="Switch between light and dark").click()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto(f"{url}/files")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground == "rgb(19, 18, 17)"


def test_pages_fit_a_phone(browser: Browser, service: Service, url: str, made: dict[str, str]):
    with fresh_page(browser, width=390, height=844) as page:
        sign_in(page, url, service.key)
        for path in (
            "/",
            f"/jobs/{made['job']}",
            "/files",
            f"/files/{made['file']}",
            "/jobs/new",
            "/evals",
            "/evals/new",
            made["run"],
            "/webhooks",
        ):
            page.goto(url + path)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 390, (path, width)


def test_an_evaluation_is_opened(page: Page, url: str):
    page.goto(f"{url}/evals")
    page.get_by_role("link", name="Watched on sums").click()
    expect(page.get_by_role("heading", name="Answers")).to_be_visible(timeout=90_000)
    table = page.get_by_role("table")
    for part in ("CodeBLEU", "n-gram match", "weighted n-gram match", "syntax match", "dataflow match"):
        expect(table.get_by_role("row", name=re.compile(f"^{part} "))).to_be_visible()
    headline = table.get_by_role("row", name=re.compile("^CodeBLEU "))
    expect(headline.get_by_text("95 % interval")).to_have_count(3)  # tuned, base, and the change
    assert headline.locator(".interval-over").count() == 2
    expect(page.get_by_text("95 % intervals: 2,000 draws of the items, seed 42")).to_be_visible()
    assert page.locator("article.sample").count() == 5
    first = page.locator("article.sample").first
    expect(first.get_by_label("Answer of the tuned model").locator(".tag").first).to_have_text(
        re.compile("parses|does not parse|empty")
    )
    expect(first.get_by_label("Answer of the base model")).to_be_visible()
    expect(first.get_by_label("Code of the reference").locator(".c-k").first).to_have_text("def")


def test_a_webhook_is_made_and_its_secret_shown_once(page: Page, url: str, made: dict[str, str]):
    page.goto(f"{url}/files")
    page.get_by_role("link", name="Webhooks").click()
    expect(page.get_by_role("heading", name="No webhooks yet")).to_be_visible()
    page.get_by_label("Name").fill("ours")
    page.get_by_label("Address").fill("http://127.0.0.1/hook")
    page.keyboard.press("Enter")
    address = page.get_by_label("Address")
    expect(address).to_be_focused()
    expect(address).to_have_accessible_description(re.compile("begins with https://"))
    address.fill("https://receiver.invalid/hook")
    events = page.get_by_role("group", name="Tell it when")
    for box in events.get_by_role("checkbox").all():
        box.uncheck()
    events.get_by_label("eval.run.failed").check()
    page.get_by_role("button", name="Make the endpoint").click()
    expect(page.get_by_text("Its secret, shown this once.")).to_be_visible()
    secret = page.locator(".secret code").inner_text()
    page.get_by_role("link", name="Webhooks").first.click()
    page.get_by_role("link", name="ours").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("ours")
    assert secret not in page.content()
    made["webhook"] = page.url.removeprefix(url)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_violation(
    theme: str, browser: Browser, service: Service, url: str, seen: Seen, made: dict[str, str]
):
    paths = [
        "/",
        "/jobs?show=paused",
        f"/jobs/{made['job']}",
        f"/jobs/{made['stopped']}",
        f"/jobs/new?from={made['job']}",
        f"/compare?job={made['job']}&job={made['stopped']}",
        "/compare",
        "/files",
        f"/files/{made['file']}?model=tiny",
        "/evals",
        f"/evals/new?job={made['job']}",
        f"/evals/new?from={made['run'].rsplit('/', 1)[1]}",
        made["run"],
        "/webhooks",
        made["webhook"],
        "/jobs/ftjob-none",
    ]
    script = AXE.read_text()
    found: dict[str, list[str]] = {}
    with fresh_page(browser, width=1280 if theme == "light" else 390, theme=theme) as page:
        seen.watch(page)
        seen.forgiving = True  # a page that is not found is a complaint of the console's
        page.goto(f"{url}/sign-in")
        found["/sign-in"] = violations(page, script)
        sign_in(page, url, service.key)
        for path in paths:
            page.goto(url + path)
            page.wait_for_function("() => document.querySelectorAll('.htmx-request').length === 0")
            found[path] = violations(page, script)
    assert {path: rules for path, rules in found.items() if rules} == {}


def violations(page: Page, script: str) -> list[str]:
    """The serious and critical violations on a page, each with where it is."""
    page.evaluate(script)
    result = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert result["testEngine"]["version"] == "4.14.1"
    assert len(result["passes"]) > 5, "axe has looked"
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:160]}"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


def test_signing_out_ends_the_session_for_good(page: Page, url: str):
    [cookie] = [cookie for cookie in page.context.cookies() if cookie["name"] == "hone_session"]
    refreshes: list[Route] = []

    def sign_out(route: Route) -> None:
        # As the server answers once there is no session: the page must not be loaded again, and lead back to itself.
        refreshes[0].fulfill(status=204, headers={"HX-Refresh": "true"})
        route.continue_()

    page.route(f"{url}/jobs/table*", lambda route: refreshes.append(route))  # noqa: PLW0108 - takes no built-in
    page.route(f"{url}/sign-out", sign_out)
    with page.expect_request(f"{url}/jobs/table*"):
        page.goto(f"{url}/?show=running")
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{url}/sign-in")
    page.unroute_all()
    page.context.add_cookies([cookie])  # who kept the cookie has nothing
    page.goto(f"{url}/files")
    expect(page).to_have_url(re.compile("/sign-in"))


def test_nothing_was_asked_of_another_host_and_nothing_complained(url: str, seen: Seen):
    assert seen.hosts == {url.removeprefix("http://")}
    # A wrong key, a broken file, a form with a wrong number.
    refusals = {
        f"the server responded with a status of {status}" for status in ("401 (Unauthorized)", "400 (Bad Request)")
    }
    assert {complaint.removeprefix("Failed to load resource: ") for complaint in seen.complaints} == refusals
