"""The HTTP API as clients meet it, the official one above all; small models, a free port of the loopback device."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import numpy as np
import openai
import PIL.Image
import pytest
import servers
import small
from servers import Slow, eventually
from test_cli import pixelcascade, refused

from pixelcascade.cascade import Cascade
from pixelcascade.encode.text import open_encoder
from pixelcascade.metadata import read_provenance
from pixelcascade.serve.app import Policy, api_app
from pixelcascade.serve.keys import Key, Rates, add_key, digest_of, load_keys
from pixelcascade.serve.queue import StageRule
from pixelcascade.serve.schema import marks_of
from pixelcascade.serve.store import Store
from pixelcascade.stage import Settings, Space

RULES = {"base": StageRule(8), "larger": StageRule(8)}


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return small.random_cascade(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(cascade, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("results"))
    policy = Policy(aliases=("gpt-image-1",), styles=("noto style",), store=store)
    with servers.served(api_app(cascade, RULES, policy)) as url:
        yield url


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def slow_app(*stages, policy=Policy(), most=256, **options):
    """An API over stages that paint grey; two of them unless given."""
    stages = stages or (Slow("one"), Slow("two", 16, takes=Space(3, 8, 8)))
    cascade = Cascade(list(stages), open_encoder("hash"), name="slow")
    rules = {stage.name: StageRule(4) for stage in stages}
    return api_app(cascade, rules, policy, most=most, **options)


def picture(data: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(data)))


def ask(url: str, **fields) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/images/generations", json={"prompt": "red", **fields}, timeout=30)


def ask_text(url: str, text: str | bytes) -> httpx2.Response:
    headers = {"Content-Type": "application/json"}
    return httpx2.post(f"{url}/v1/images/generations", content=text, headers=headers, timeout=60)


def error_of(answer: httpx2.Response) -> dict:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


# -- the official client -------------------------------------------------------------------------------------------


def test_the_official_client_gets_the_pictures_that_generate_paints(client, cascade):
    done = client.images.generate(prompt="a red square", model="small", n=2, extra_body={"seed": 7})
    here = cascade.generate(["a red square"] * 2, [7, 8])
    assert len(done.data) == 2 and done.size == "16x16" and done.output_format == "png"
    for got, wanted in zip(done.data, here, strict=True):
        change = np.abs(np.asarray(picture(got.b64_json)).astype(int) - np.asarray(wanted).astype(int))
        assert change.max() <= 1
    assert [row.seed for row in done.data] == [7, 8]
    assert done.usage.input_tokens == 2 * 3 and done.usage.output_tokens == 2 * 6


def test_one_picture_is_the_same_bit_for_bit_and_carries_its_request(client, cascade, tmp_path):
    own = {"seed": 5, "negative_prompt": "blue", "steps": [2, 1], "guidance": [4, 1.5], "aug_snr": 3}
    done = client.images.generate(prompt="a red square", size="16x16", extra_body=own)
    settings = {"base": Settings(2, 4.0), "larger": Settings(1, 1.5, 3.0)}
    (here,) = cascade.generate(["a red square"], [5], 16, "blue", settings)
    (tmp_path / "a.png").write_bytes(base64.b64decode(done.data[0].b64_json))
    assert (np.asarray(PIL.Image.open(tmp_path / "a.png")) == np.asarray(here)).all()
    told = read_provenance(tmp_path / "a.png")
    assert (told.prompt, told.seed, told.negative, told.model) == ("a red square", 5, "blue", "small")
    assert told.stages["base"]["guidance"] == 4 and told.stages["larger"]["steps"] == 1
    assert b"trainedAlgorithmicMedia" in (tmp_path / "a.png").read_bytes()


def test_the_official_client_streams_the_small_stages_first(client, cascade):
    events = list(client.images.generate(prompt="red", stream=True, partial_images=1, extra_body={"seed": 1}))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert picture(events[0].b64_json).size == (8, 8) and events[0].partial_image_index == 0
    assert picture(events[1].b64_json).size == (16, 16) and events[1].usage.total_tokens > 0
    (here,) = cascade.generate(["red"], [1])
    assert (np.asarray(picture(events[1].b64_json)) == np.asarray(here)).all()
    for event in events:
        assert event.created_at and event.size == "16x16" and event.quality == "auto" and event.output_format == "png"


def test_partial_pictures_are_of_each_image_and_their_number_is_kept(client):
    events = list(client.images.generate(prompt="red", n=2, stream=True, partial_images=2, extra_body={"seed": 4}))
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert sorted(kinds) == ["completed"] * 2 + ["partial_image"] * 4
    for seed in (4, 5):
        own = [event for event in events if event.seed == seed]
        assert [getattr(event, "partial_image_index", None) for event in own] == [0, 1, None]


@pytest.mark.parametrize(
    ("stages", "partial", "marks"),
    [
        (3, 2, {("0", -1), ("1", -1)}),
        (3, 1, {("0", -1)}),
        (3, 3, {("0", -1), ("1", -1), ("0", 8)}),
        (1, 3, {("0", 4), ("0", 8), ("0", 12)}),
        (2, 0, set()),
    ],
)
def test_which_predictions_are_partial_pictures(stages, partial, marks):
    assert marks_of([Slow(str(index)) for index in range(stages)], 16, partial) == marks


def test_the_official_client_is_told_of_errors_in_its_own_classes(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="red", model="dall-e-9")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(prompt="red", size="64x64")
    assert wrong.value.param == "size" and "its stages give 8x8, 16x16" in wrong.value.message


def test_the_official_client_tries_again_when_the_queue_was_full():
    one = Slow("one", steps=1)
    one.gate = threading.Event()
    with servers.served(slow_app(one, most=1)) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url)
        eventually(lambda: one.begun == 1)
        full = ask(url)
        assert full.status_code == 429 and 1 <= int(full.headers["Retry-After"]) <= 120
        assert error_of(full)["type"] == "rate_limit_error" and error_of(full)["code"] == "queue_full"
        threading.Timer(0.3, one.gate.set).start()
        patient = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3)
        assert patient.images.generate(prompt="red").data[0].b64_json
        assert first.result().status_code == 200


def test_a_failure_in_mid_stream_is_an_event_and_an_error_of_the_client():
    two = Slow("two", 16, takes=Space(3, 8, 8))
    two.fault = {2: RuntimeError("secret details")}
    with servers.served(slow_app(Slow("one"), two)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        events = client.images.generate(prompt="red", stream=True, partial_images=1)
        assert next(iter(events)).type == "image_generation.partial_image"
        with pytest.raises(openai.APIError, match="a stage has failed"):
            list(events)
        assert client.images.generate(prompt="red").data


# -- fields --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_formats_and_compression(server, format):
    best, worst = (
        ask(server, output_format=format, output_compression=quality, seed=1).json()["data"][0]["b64_json"]
        for quality in (100, 5)
    )
    assert picture(best).format == format.upper()
    assert format == "png" or len(worst) < len(best)
    assert b"trainedAlgorithmicMedia" in base64.b64decode(best)


def test_a_smaller_size_ends_earlier_and_others_are_resized(server):
    assert picture(ask(server, size="8x8").json()["data"][0]["b64_json"]).size == (8, 8)
    assert picture(ask(server, size="12x10").json()["data"][0]["b64_json"]).size == (12, 10)
    assert picture(ask(server, size="auto").json()["data"][0]["b64_json"]).size == (16, 16)


def test_quality_is_a_preset_of_steps(server):
    steps = [ask(server, quality=quality).json()["usage"]["output_tokens"] for quality in ("low", "medium", "high")]
    assert steps == [4, 6, 10]


def test_fields_without_a_meaning_here_are_named(server):
    answer = ask(server, background="auto", style="vivid", user="me", moderation="low", output_compression=50)
    assert answer.status_code == 200
    assert answer.headers["x-pixelcascade-ignored"] == "background, moderation, style, user, output_compression"
    assert "x-pixelcascade-ignored" not in ask(server).headers


def test_no_seed_draws_one_and_says_which(server):
    one, two = (ask(server).json()["data"][0] for _ in range(2))
    assert one["seed"] != two["seed"]
    again = ask(server, seed=one["seed"]).json()["data"][0]
    assert (np.asarray(picture(again["b64_json"])) == np.asarray(picture(one["b64_json"]))).all()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"size": "0x8"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "large"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"partial_images": 4}, "partial_images"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"steps": [1, 2, 3]}, "steps"),
        ({"steps": 0}, "steps"),
        ({"guidance": [-1]}, "guidance"),
        ({"aug_snr": 0}, "aug_snr"),
    ],
)
def test_a_wrong_field_is_400_and_named(server, fields, param):
    answer = ask(server, **fields)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == param and error_of(answer)["type"] == "invalid_request_error"


def test_unknown_fields_are_named_with_the_nearest_known_one(server):
    answer = ask(server, sede=3)
    assert answer.status_code == 400 and "did you mean 'seed'" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"null", b'"red"', b"[" * 50_000, b'{"prompt": NaN}', b"\xff\xfe"]
)
def test_a_body_that_is_no_request_is_400(server, body):
    answer = ask_text(server, body)
    assert answer.status_code == 400 and error_of(answer)


def test_odd_prompts_are_painted(server):
    assert ask_text(server, '{"prompt": "\\ud800"}').status_code == 400  # half a character
    for prompt in ("a\0b", "🍎 – «x»", " x ", "w" * 32_000):
        assert ask_text(server, json.dumps({"prompt": prompt, "n": 1})).status_code == 200, prompt[:9]


def test_a_body_that_is_too_large_is_413_whether_it_says_so_or_not(server):
    big = b'{"prompt": "' + b"x" * 2**20 + b'"}'
    said = httpx2.post(f"{server}/v1/images/generations", content=big, headers={"Content-Type": "application/json"})
    assert said.status_code == 413

    def parts():
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    unsaid = httpx2.post(
        f"{server}/v1/images/generations", content=parts(), headers={"Content-Type": "application/json"}
    )
    assert unsaid.status_code == 413 and error_of(unsaid)["code"] == "body_too_large"


def test_unknown_routes_and_methods_have_the_shape_of_errors(server):
    assert httpx2.get(f"{server}/v2/nothing").status_code == 404
    assert error_of(httpx2.get(f"{server}/v1/images/generations"))["code"] == "method_not_allowed"
    assert httpx2.get(f"{server}/page/../../app.py").status_code == 404


def test_pictures_are_kept_for_clients_that_want_a_url(server):
    url = ask(server, response_format="url").json()["data"][0]["url"]
    kept = httpx2.get(server + url)
    assert kept.status_code == 200 and PIL.Image.open(io.BytesIO(kept.content)).size == (16, 16)
    assert httpx2.get(f"{server}/results/{'a' * 32}.png").status_code == 404
    assert httpx2.get(f"{server}/results/..%2F..%2Fetc%2Fpasswd").status_code == 404


def test_a_store_keeps_the_newest_and_only_its_own(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"x")
    store = Store(tmp_path, most=2)
    names = [store.keep(b"picture", "png") for _ in range(4)]
    assert sum(store.find(name) is not None for name in names) == 2 and (tmp_path / "mine.png").exists()
    assert replace(store, keep_s=-1.0).find(names[-1]) is None


# -- what is served ------------------------------------------------------------------------------------------------


def test_models_say_their_names_stages_and_styles(client, server):
    assert [model.id for model in client.models.list()] == ["small", "gpt-image-1"]
    told = httpx2.get(f"{server}/v1/models/small").json()
    assert told["stages"][0] == {"name": "base", "width": 8, "height": 8, "steps": 3, "guidance": 2.0}
    assert told["styles"] == ["noto style"]
    assert error_of(httpx2.get(f"{server}/v1/models/smal"))["code"] == "model_not_found"


def test_health_metrics_and_the_document(server):
    assert httpx2.get(f"{server}/health/live").json() == {"status": "live"}
    ready = httpx2.get(f"{server}/health/ready")
    assert ready.status_code == 200 and ready.json()["stages"] == {"base": True, "larger": True}
    ask(server)
    text = httpx2.get(f"{server}/metrics").text
    for name in ("queue_places 0.0", "wait_seconds_count", 'batch_images_count{stage="base"}', "step_seconds_bucket"):
        assert f"pixelcascade_{name}" in text
    document = httpx2.get(f"{server}/openapi.json").json()
    assert {"/v1/images/generations", "/v1/jobs", "/v1/jobs/{id}", "/v1/models"} <= set(document["paths"])


def test_requests_at_the_same_time_share_batches(cascade):
    app = api_app(cascade, RULES)
    with servers.served(app) as url, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: ask(url, seed=seed, guidance=[1.5 + seed, 2.0]), range(8)))
        text = httpx2.get(f"{url}/metrics").text
    assert all(answer.status_code == 200 for answer in answers)
    batches = float(next(line for line in text.splitlines() if 'batch_images_count{stage="base"}' in line).split()[1])
    assert batches < 8
    for seed, answer in enumerate(answers):
        settings = {"base": Settings(guidance=1.5 + seed), "larger": Settings(guidance=2.0)}
        (here,) = cascade.generate(["red"], [seed], settings=settings)
        got = np.asarray(picture(answer.json()["data"][0]["b64_json"])).astype(int)
        assert np.abs(got - np.asarray(here)).max() <= 1


# -- cancelling, deadlines, faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_frees_the_device_within_a_step(streamed):
    one = Slow("one", steps=100, step_s=0.05)
    app = slow_app(one)
    with servers.served(app) as url:
        body = {"prompt": "red", "stream": streamed, "progress": streamed}
        client = httpx2.Client(timeout=30)

        def begin():
            with client.stream("POST", f"{url}/v1/images/generations", json=body) as answer:
                for _ in answer.iter_bytes():
                    break

        if streamed:
            begin()
        else:
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(f"{url}/v1/images/generations", json=body, timeout=0.6)
        client.close()
        at = one.at
        eventually(lambda: one.closed == 1, 2.0)
        assert one.at < min(100, at + 25) and app.state.served.engine.load == 0


def test_a_request_that_takes_too_long_is_given_up_and_the_next_one_works():
    one = Slow("one", steps=40, step_s=0.05)
    with servers.served(slow_app(one, policy=Policy(limit_s=0.4))) as url:
        late = ask(url)
        assert late.status_code == 503 and error_of(late)["code"] == "deadline_exceeded"
        one.steps = 1
        assert ask(url).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (RuntimeError("x"), 500, "stage_failed"),
        (SystemExit(3), 500, "stage_failed"),
        (ValueError("that prompt has no picture"), 400, "invalid_value"),
        (MemoryError(), 503, "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "out_of_memory"),
    ],
    ids=["raises", "exits", "refuses", "memory", "allocator"],
)
def test_a_stage_that_fails_is_one_answer_and_the_next_one_works(fault, status, code):
    one = Slow("one")
    one.fault = {2: fault}
    app = slow_app(one)
    with servers.served(app) as url:
        answer = ask(url)
        assert answer.status_code == status and error_of(answer)["code"] == code
        assert ask(url).status_code == 200 and app.state.served.engine.load == 0


def test_too_little_memory_for_a_batch_is_no_error_but_smaller_batches():
    one = Slow("one")
    one.fault = {2: MemoryError()}
    with servers.served(slow_app(one)) as url:
        answer = ask(url, n=4, seed=0)
        assert answer.status_code == 200 and len(answer.json()["data"]) == 4
        assert one.batches == [(0, 1, 2, 3), (0, 1), (2, 3)]


def lanes() -> int:
    return sum(thread.name == "lane here" for thread in threading.enumerate())


def test_a_stage_that_hangs_is_given_up_and_the_next_one_works():
    one = Slow("one")
    one.gate = threading.Event()
    with servers.served(slow_app(one, hang_s=0.4)) as url:
        before = lanes()
        hung = ask(url)
        assert hung.status_code == 503 and "did not end within 0.4 s" in error_of(hung)["message"]
        gate, one.gate = one.gate, None
        assert ask(url).status_code == 200
        gate.set()  # the step that hung ends at last: nobody is told twice, and its thread goes
        eventually(lambda: lanes() == before)
        assert ask(url).status_code == 200


def test_overload_is_refused_at_once_and_what_was_accepted_finishes():
    one = Slow("one", steps=2, step_s=0.02)
    app = slow_app(one, most=8)
    with servers.served(app) as url, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(url), range(80)))
        accepted = [answer for answer in answers if answer.status_code == 200]
        refused_ones = [answer for answer in answers if answer.status_code == 429]
        assert len(accepted) + len(refused_ones) == 80 and len(accepted) >= 8 and refused_ones
        assert all(1 <= int(answer.headers["Retry-After"]) <= 120 for answer in refused_ones)
        assert app.state.served.engine.load == 0 and not app.state.served.engine._rows
        assert "pixelcascade_queue_places 0.0" in httpx2.get(f"{url}/metrics").text


# -- jobs ----------------------------------------------------------------------------------------------------------


def test_a_job_is_asked_for_until_it_is_done(server, cascade):
    made = httpx2.post(f"{server}/v1/jobs", json={"prompt": "red", "seed": 3})
    assert made.status_code == 202 and made.json()["status"] in ("queued", "running")
    where = server + made.headers["Location"]
    eventually(lambda: httpx2.get(where).json()["status"] == "succeeded")
    done = httpx2.get(where).json()
    (here,) = cascade.generate(["red"], [3])
    assert (np.asarray(picture(done["result"]["data"][0]["b64_json"])) == np.asarray(here)).all()
    assert httpx2.delete(where).json()["status"] == "succeeded"
    assert httpx2.get(f"{server}/v1/jobs/job-0").status_code == 404


def test_a_job_is_cancelled_within_a_step():
    one = Slow("one", steps=100, step_s=0.05)
    with servers.served(slow_app(one)) as url:
        where = url + httpx2.post(f"{url}/v1/jobs", json={"prompt": "red"}).headers["Location"]
        eventually(lambda: (httpx2.get(where).json()["progress"] or {}).get("index", 0) > 0)
        assert httpx2.get(where).json()["status"] == "running"
        assert httpx2.delete(where).json()["status"] == "cancelled"
        eventually(lambda: one.closed == 1, 2.0)
        assert httpx2.get(where).json()["status"] == "cancelled"


def test_a_job_that_fails_says_why():
    one = Slow("one")
    one.fault = {1: RuntimeError("x")}
    with servers.served(slow_app(one)) as url:
        where = url + httpx2.post(f"{url}/v1/jobs", json={"prompt": "red"}).headers["Location"]
        eventually(lambda: httpx2.get(where).json()["status"] == "failed")
        assert httpx2.get(where).json()["error"]["code"] == "stage_failed"


# -- who may -------------------------------------------------------------------------------------------------------

KEYS = (
    Key("ann", digest_of("pc-ann"), rate=2.0),
    Key("bob", digest_of("pc-bob")),
    Key("scraper", digest_of("pc-scraper"), ("metrics",)),
)


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer pc-{name}"}


def test_keys_scopes_and_rates():
    with servers.served(slow_app(Slow("one"), policy=Policy(keys=KEYS))) as url:
        generations = f"{url}/v1/images/generations"

        def post(name: str, **fields):
            return httpx2.post(generations, json={"prompt": "red", **fields}, headers=as_(name), timeout=30)

        bare = ask(url)
        assert bare.status_code == 401 and error_of(bare)["code"] == "invalid_api_key"
        assert post("eve").status_code == 401 and post("scraper").status_code == 403
        assert post("bob").status_code == 200
        assert post("ann", n=2).status_code == 200
        over = post("ann")
        assert over.status_code == 429 and 1 <= int(over.headers["Retry-After"]) <= 60
        assert error_of(over)["code"] == "rate_limit_exceeded"
        assert httpx2.get(f"{url}/metrics").status_code == 401
        assert httpx2.get(f"{url}/metrics", headers=as_("scraper")).status_code == 200
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/health/ready").status_code == 200
        job = httpx2.post(f"{url}/v1/jobs", json={"prompt": "red"}, headers=as_("bob")).headers["Location"]
        assert httpx2.get(url + job, headers=as_("ann")).status_code == 404  # another's
        assert httpx2.get(url + job, headers=as_("bob")).status_code == 200


def test_rates_fill_evenly_and_let_a_large_request_in_when_full():
    rates, key = Rates(), Key("a", "", rate=60.0)
    assert rates.take(key, 60, 0.0) == 0.0
    assert rates.take(key, 2, 1.0) == pytest.approx(1.0)
    assert rates.take(key, 2, 2.0) == 0.0
    rates.give_back(key, 1)
    assert rates.take(key, 1, 2.0) == 0.0
    slow = Key("b", "", rate=2.0)
    assert rates.take(slow, 10, 0.0) == 0.0
    assert rates.take(slow, 1, 60.0) == pytest.approx(210.0)  # it is in debt, for the ten it was let in with


def test_a_key_is_shown_once_and_kept_as_a_digest(tmp_path):
    file = tmp_path / "keys.json"
    done = pixelcascade("key", file, "--name", "ann", "--rate", "5")
    shown = done.stdout.strip()
    assert shown.startswith("pc-") and len(shown) > 40
    assert shown not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    assert load_keys(file) == [Key("ann", digest_of(shown), rate=5.0)]
    add_key(file, "bob")
    add_key(file, "ann", ("metrics",))
    assert [(key.name, key.scopes) for key in load_keys(file)] == [
        ("bob", ("generate", "metrics")),
        ("ann", ("metrics",)),
    ]
    refused(pixelcascade("key", file, "--name", "x", "--scope", "generte"), "did you mean 'generate'")


def test_a_server_for_other_machines_needs_keys(tmp_path):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        refused(pixelcascade("serve", "--host", host), f"--host {host}", "--keys")
    (tmp_path / "keys.json").write_text('{"keys": []}')
    refused(pixelcascade("serve", "--host", "0.0.0.0", "--keys", tmp_path / "keys.json"), "holds no key")
    refused(pixelcascade("serve", "--port", "99999"), "--port is 99999")
    refused(pixelcascade("serve", "--model", "emoji/sr256"), "emoji/sr256")


def test_other_sites_and_other_names_are_refused(server):
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = httpx2.post(f"{server}/v1/images/generations", json={"prompt": "red"}, headers=headers)
        assert answer.status_code == 403 and error_of(answer)["type"] == "permission_error"
    own = httpx2.get(f"{server}/v1/models", headers={"Origin": server})
    assert own.status_code == 200 and "script-src 'self'" in own.headers["content-security-policy"]


# -- how it ends ---------------------------------------------------------------------------------------------------


def test_draining_finishes_what_runs_and_refuses_what_is_new():
    one = Slow("one", steps=4, step_s=0.1)
    app = slow_app(one)
    with servers.served(app) as url, ThreadPoolExecutor() as pool:
        running = pool.submit(ask, url)
        eventually(lambda: one.at > 0)
        app.state.served.draining = True
        late = ask(url)
        assert late.status_code == 503 and error_of(late)["code"] == "draining" and late.headers["Retry-After"]
        assert httpx2.get(f"{url}/health/ready").status_code == 503
        assert httpx2.get(f"{url}/health/live").status_code == 200
        assert running.result().status_code == 200


def test_logs_are_json_without_prompts_unless_asked(cascade, caplog):
    import logging

    from pixelcascade.serve.logs import JSONLines

    for asked in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "pixelcascade.serve"):
            with servers.served(api_app(cascade, RULES, Policy(prompts=asked))) as url:
                assert ask(url, prompt="my secret wish").status_code == 200
            lines = [json.loads(JSONLines().format(record)) for record in caplog.records]
        (line,) = [line for line in lines if line["event"] == "request"]
        assert line["outcome"] == "done" and line["n"] == 1 and line["size"] == "16x16"
        assert ("secret" in json.dumps(lines)) == asked
