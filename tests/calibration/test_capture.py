# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from secateur.calibration import measures
from secateur.calibration.capture import DROPPED, KNOWN, capture
from secateur.calibration.layer_walk import layers, positions, prompts, run
from secateur.calibration.samples import QUESTION, Sample, samples
from secateur.checkpoints.checkpoint import Entry
from secateur.checkpoints.streaming import stream
from secateur.errors import BadImage, BadModel, BadPrompt, InputError
from secateur.families.base import Family
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from tests.conftest import tiny_family
from tests.reference import masked_logits

BOTH = frozenset({"similarity", "attention"})
ARRAYS = frozenset(KNOWN - {"layers"})


def pictures(count: int) -> list[Sample]:
    """Pictures of noise with questions of different lengths."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(count)]
    return [Sample(image, f"w{i} w2 w3" + " w4" * (i % 3)) for i, image in enumerate(images)]


def tail(family: Family, sample: Sample) -> list[int]:
    return list(Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer)).first(sample.question))


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Run transformers' own eager attention, which returns its maps."""
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def counted(family: Family) -> Iterator[list[int]]:
    """Record the numbers of the decoder layers that run."""
    runs: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, n=number: runs.append(n))
        for number, layer in enumerate(family.decoder.layers)
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def test_equals_what_transformers_reports(tiny: Family) -> None:
    """Hidden states and attention maps of the whole model in eager mode are the oracle."""
    chosen = pictures(3)
    found = capture(tiny, chosen, BOTH | {"cross_attention", "self_attention"})[0]
    layout, layers = tiny.layout, tiny.dimensions.layers
    start, end = layout.image_start, layout.image_start + layout.vision_tokens
    with eager(tiny.model):
        for i, sample in enumerate(chosen):
            ids = [*layout.ids(tiny.image_token_id), *tail(tiny, sample)]
            pixels = torch.from_numpy(pixel_values(load_image(sample.image), tiny.preprocess))
            out = tiny.model(
                input_ids=torch.tensor([ids]), pixel_values=pixels, output_hidden_states=True, output_attentions=True
            )
            # transformers puts the final norm on the last hidden state, so the last layer cannot be read there.
            for layer in range(layers - 1):
                pair = [out.hidden_states[layer + k][0, start:end] for k in (0, 1)]
                expected = torch.nn.functional.cosine_similarity(pair[0], pair[1], dim=-1).numpy()
                np.testing.assert_allclose(found.similarity[layer, i], expected, atol=1e-5)
            for layer in range(layers):
                maps = out.attentions[layer][0].numpy()
                assert found.attention[layer, i] == pytest.approx(maps[:, -1, start:end].sum(-1).mean(), abs=1e-5)
                cross, own = (
                    received(maps, range(end, len(ids)), start, end),
                    received(maps, range(start, end), start, end),
                )
                np.testing.assert_allclose(found.cross_attention[layer, i], cross, atol=1e-5)
                np.testing.assert_allclose(found.self_attention[layer, i], own, atol=1e-5)


def received(maps: NDArray[np.float32], rows: Iterable[int], start: int, end: int) -> NDArray[np.float64]:
    """Return the attention each vision token receives from maps [H, S, S]: largest head of each row, summed."""
    total = np.zeros(end - start)
    for row in rows:
        for column in range(start, end):
            total[column - start] += max(head[row, column] for head in maps)
    return total


def test_attention_does_not_depend_on_the_chunk(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = frozenset({"self_attention"})
    whole = capture(tiny, pictures(1), wanted)[0].self_attention
    monkeypatch.setattr(measures, "CHUNK", 5)
    np.testing.assert_allclose(capture(tiny, pictures(1), wanted)[0].self_attention, whole, rtol=1e-5)


def test_divergence_of_a_model_that_loses_the_image(tiny: Family) -> None:
    """The oracle runs transformers' own layers and masks the image from one layer on; all rows keep their places."""
    chosen = pictures(2)
    found = capture(tiny, chosen, frozenset({"drop_divergence"}))[0].drop_divergence
    assert found.shape == (tiny.dimensions.layers, 2)
    for i, sample in enumerate(chosen):
        pixels, tokens = pixel_values(load_image(sample.image), tiny.preprocess), tail(tiny, sample)
        full = log_softmax(masked_logits(tiny, pixels, tokens, {})[-1])
        for layer in range(tiny.dimensions.layers):
            dropped = log_softmax(masked_logits(tiny, pixels, tokens, {layer: ()})[-1])
            assert found[layer, i] == pytest.approx((np.exp(full) * (full - dropped)).sum(), rel=1e-3, abs=1e-5)
    assert found.max() > 0.01  # the image matters, so the comparison says something


def test_divergence_runs_every_layer_while_it_is_there(tiny: Family, tmp_path: Path) -> None:
    """Each weight of a streamed model is read once for all samples; the oracle drops the image before one layer and
    runs the rest."""
    tiny.model.save_pretrained(tmp_path)
    model = stream(type(tiny).architecture, tmp_path)
    assert model is not None
    files, chosen, wanted = type(tiny)(model, tiny.processor, "files"), pictures(3), frozenset({"drop_divergence"})
    assert files.fingerprint and files.entry_scale == 1  # both read weights, and are asked for when a model is loaded
    with reads() as read:
        found = capture(files, chosen, wanted)[0].drop_divergence
    decoder, layout = tiny.decoder, tiny.layout
    assert set(read.values()) == {1} and sum(".layers.0." in name for name in read) > 8
    for first, rows in entered(tiny, chosen):
        for i, row in enumerate(rows):
            others = [*layout.text_rows(), *range(layout.rows, row.shape[1])]
            ids = positions(layout, row.shape[1])[..., others]
            depth = tiny.dimensions.layers
            last = run(decoder, range(first, depth), row[:, others], ids)[:, -1]
            whole = run(decoder, range(first, depth), row, positions(layout, row.shape[1]))[:, -1]
            assert found[first, i] == pytest.approx(measures.divergence(decoder, whole, last)[0], abs=1e-6)


def entered(family: Family, chosen: list[Sample]) -> list[tuple[int, list[torch.Tensor]]]:
    found = []
    for number, rows, passages in layers(family, list(prompts(family, chosen))):
        found.append((number, list(rows)))
        for _ in passages:
            pass
    return found


@contextmanager
def reads() -> Iterator[Counter[str]]:
    """Count the reads of each tensor from its file."""
    found, read = Counter[str](), Entry.read

    def counted(entry: Entry) -> torch.Tensor:
        found[entry.name] += 1
        return read(entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entry, "read", counted)
        yield found


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def test_divergence_takes_twenty_samples_at_most(tiny: Family) -> None:
    samples = pictures(DROPPED + 1)
    found = capture(tiny, samples, frozenset({"drop_divergence"}))[0]
    first = capture(tiny, samples[:DROPPED], frozenset({"drop_divergence"}))[0]
    assert DROPPED == 20 and found.samples == 21
    assert np.array_equal(found.drop_divergence, first.drop_divergence)


def test_encoder_variance_is_that_of_the_scores(tiny: Family) -> None:
    chosen = pictures(3)
    found = capture(tiny, chosen, frozenset({"encoder_variance"}))[0].encoder_variance
    vision = tiny.vision(("received.-2", "given.-2"))
    for i, sample in enumerate(chosen):
        _, *scores = vision(torch.from_numpy(pixel_values(load_image(sample.image), tiny.preprocess)))
        np.testing.assert_allclose(
            found[i], [np.var(score[0].numpy(), dtype=np.float64) for score in scores], rtol=1e-4
        )


def test_is_deterministic(tiny: Family) -> None:
    first, second = (capture(tiny, pictures(3), ARRAYS)[0] for _ in range(2))
    for name in ARRAYS:
        assert getattr(first, name).size and np.array_equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [(BOTH, 3 + 12), ({"drop_divergence"}, 3 + 12 + 3 * (4 + 3 + 2 + 1)), ({"encoder_variance"}, 3), ({"layers"}, 3)],
)
def test_tells_its_progress(tiny: Family, wanted: set[str], steps: int) -> None:
    told: list[tuple[int, int]] = []
    capture(tiny, pictures(3), frozenset(wanted), progress=lambda done, total: told.append((done, total)))
    assert told[:3] == [(1, steps), (2, steps), (3, steps)] and told[-1] == (steps, steps)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_measures_only_what_is_wanted(tiny: Family) -> None:
    layers = tiny.dimensions.layers
    with counted(tiny) as runs:
        assert capture(tiny, pictures(1), frozenset())[0].samples == 0
        capture(tiny, pictures(2), frozenset({"encoder_variance"}))
        assert not runs
        found = capture(tiny, pictures(2), frozenset({"attention"}))[0]
        assert len(runs) == 2 * layers
        assert found.similarity.size == 0 and found.layers is None and found.attention.shape == (layers, 2)
        runs.clear()
        walk = capture(tiny, pictures(2), frozenset({"layers"}))[0].layers
        assert walk is not None and not runs
        assert [step.number for step in walk()] == list(range(layers))
        assert len(runs) == 3 * layers, "each layer with two samples, and on a few rows to compare its projections"
    with pytest.raises(ValueError, match="nonsense"):
        capture(tiny, pictures(1), frozenset({"nonsense"}))


def test_damaged_weights_are_noticed() -> None:
    family = tiny_family("llava")
    with torch.no_grad():
        next(family.decoder.layers[1].parameters())[0, 0] = float("nan")
    with pytest.raises(BadModel, match=r"not a number \(attention, similarity\)"):
        capture(family, pictures(1), BOTH)


def test_generated_samples() -> None:
    first, second = samples("demo", None, 5, 3), samples("demo", None, 5, 3)
    assert [s.question for s in first] == [s.question for s in second]
    assert all(
        load_image(a.image).tobytes() == load_image(b.image).tobytes() for a, b in zip(first, second, strict=True)
    )


def test_samples_from_files(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [s.question for s in samples("m", tmp_path, 3, 0)] == [QUESTION] * 3
    assert {s.image for s in samples("m", tmp_path, 4, 0)} == {tmp_path / f"{i}.png" for i in range(4)}, "no pixels"
    lines = [{"image": f"{i}.png", "text": f"what {i}"} for i in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert {s.question for s in samples("m", tmp_path / "q.jsonl", 4, 0)} == {f"what {i}" for i in range(4)}


def test_a_sample_in_a_file_is_read_when_it_is_encoded(tiny: Family, tmp_path: Path) -> None:
    (held,) = pictures(1)
    assert isinstance(held.image, Image.Image)
    held.image.save(tmp_path / "0.png")
    (found,), (expected,) = (list(prompts(tiny, [each])) for each in (Sample(tmp_path / "0.png", held.question), held))
    assert torch.equal(found.rows, expected.rows)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    (damaged,) = samples("m", tmp_path, 1, 0)
    with pytest.raises(BadImage, match="0.png cannot be decoded"):
        list(prompts(tiny, [damaged]))


def test_hidden_files_and_byte_order_marks(tmp_path: Path) -> None:
    """macOS writes `._NAME` into archives, and Windows editors a byte order mark."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.PNG")
    for name in ("._a.PNG", ".DS_Store", "._b.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "folder.png").mkdir()
    assert [sample.image for sample in samples("m", tmp_path, 1, 0)] == [tmp_path / "a.PNG"]
    line = json.dumps({"image": "a.PNG", "text": "a\u2028b"}, ensure_ascii=False)  # U+2028 ends no line of JSON lines
    (tmp_path / "q.jsonl").write_text(f"\ufeff{line}\r\n\n", encoding="utf-8")
    assert [sample.question for sample in samples("m", tmp_path / "q.jsonl", 1, 0)] == ["a\u2028b"]


def test_a_text_beyond_the_context_is_refused_before_the_model_runs(
    tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = tiny.dimensions.context - tiny.layout.rows
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    words = [" ".join(["w1"] * count) for count in (1, 300_000)]
    lines = [json.dumps({"image": "0.png", "text": text}) for text in words]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(type(tiny), "vision", lambda *_: pytest.fail("an image was encoded"))
    needed = tiny.layout.rows + len(tail(tiny, Sample(Path(), words[1])))
    said = (
        rf"q.jsonl line 2: the prompt needs {needed} positions with its images, the model has {free + tiny.layout.rows}"
    )
    with pytest.raises(BadPrompt, match=f"{said}; shorten the text"):
        capture(tiny, samples("m", tmp_path / "q.jsonl", 2, 0), BOTH)
    with pytest.raises(BadPrompt, match="a sample: the prompt is empty"):
        capture(tiny, [Sample(Image.new("RGB", (8, 8)), " ")], BOTH)


def test_a_text_that_fills_the_context_is_measured(tiny: Family) -> None:
    around = len(tail(tiny, Sample(Path(), "w1"))) - 1
    free = tiny.dimensions.context - tiny.layout.rows - around
    (start,) = prompts(tiny, [Sample(Image.new("RGB", (8, 8)), " ".join(["w1"] * free))])
    assert start.rows.shape[1] == tiny.dimensions.context
    with pytest.raises(BadPrompt, match="positions with its images"):
        list(prompts(tiny, [Sample(Image.new("RGB", (8, 8)), " ".join(["w1"] * (free + 1)))]))


BRACKETS = "[" * 2000 + "]" * 2000


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        ("", 1, "holds 0 samples, fewer than 1"),
        ('{"image": "0.png", "text": "x"}', 2, "holds 1 samples, fewer than 2"),
        ("nonsense", 1, "line 1 is not JSON: Expecting value"),
        ('{"image": "0.png"}', 1, 'line 1 has no "text" or "question"'),
        ('{"text": "x"}', 1, 'line 1 has no "image"'),
        ("[]", 1, "line 1 is not a JSON object"),
        ('{"image": "0.png", "text": null}', 1, 'line 1 has no "text" or "question"'),
        ('\n{"image": "0.png", "text": 5}', 1, 'line 2: "text" or "question" is 5; it must be text'),
        ('{"image": "0.png", "text": ["x"]}', 1, r'"text" or "question" is \["x"\]; it must be text'),
        ('{"image": "0.png", "text": " "}', 1, '"text" or "question" is " "; it must be text'),
        ('{"image": "0.png", "text": "\\ud800"}', 1, "line 1: .* has half of a surrogate pair"),
        ('{"image": 3, "text": "x"}', 1, '"image" is 3; it must be text'),
        ('{"image": "a\\u0000.png", "text": "x"}', 1, "line 1: image .* does not exist"),
        (f'{{"image": "0.png", "text": {BRACKETS}}}', 1, "line 1 is nested too deeply|it must be text"),
        (BRACKETS, 1, "line 1 is nested too deeply|line 1 is not a JSON object"),
    ],
)
def test_bad_sample_files(tmp_path: Path, content: str, count: int, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        samples("m", tmp_path / "q.jsonl", count, 0)


def test_bad_sample_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --samples"):
        samples("some/model", None, 1, 0)
    with pytest.raises(InputError, match="must be at least 1"):
        samples("demo", None, 0, 0)
    with pytest.raises(InputError, match="does not exist"):
        samples("m", tmp_path / "none.jsonl", 1, 0)
    (tmp_path / "q.jsonl").write_text('{"image": "none.png", "text": "x"}')
    with pytest.raises(BadImage, match=r"q.jsonl line 1: image .*none.png does not exist"):
        samples("m", tmp_path / "q.jsonl", 1, 0)
    (tmp_path / "q.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(InputError, match="q.jsonl is not UTF-8 at byte 10; save it as UTF-8"):
        samples("m", tmp_path / "q.jsonl", 1, 0)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="pipe.jsonl cannot be read: it is not a regular file"):
        samples("m", tmp_path / "pipe.jsonl", 1, 0)
