"""The pretraining of a tiny base MLLM: its exercises against what the pixels say, and a run that is interrupted."""

import itertools
import re
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from mllm4d import prompts
from mllm4d.curate.sources.world_layout import COLOURS, SHAPES
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.tiny import build_model, build_processor, build_tokenizer
from mllm4d.schema import InputError
from tools.tiny import evaluation, exercises, films, scenes
from tools.tiny.batches import STAGES, Plan, Steps, encode_film, encode_text, stage_at
from tools.tiny.exercises import WORDINGS, draw_drill, draw_exercise, draw_list, pose
from tools.tiny.films import NAMES, draw_film, view
from tools.tiny.induction import add_induction_heads
from tools.tiny.naming import (
    WORDS,
    Probe,
    cells,
    looking_loss,
    mergers,
    named,
    naming_loss,
    read,
    stack,
    vocabulary,
    watched,
)
from tools.tiny.scenes import Scene
from tools.tiny.training import Settings, rate, spent, train
from tools.train_tiny import ROPE_THETA, VIDEO


def painted(seed):
    """A scene of flat rectangles in the solids' colours, each on its own straight way; the pixels tell all."""
    random = np.random.default_rng(seed)
    frames = np.full((8, 64, 64, 3), 128, dtype=np.uint8)
    labels = np.zeros((8, 64, 64), dtype=np.uint8)
    colours = random.permutation(list(COLOURS))[: random.integers(1, 6)]
    # A colour has its shape, so that it tells the whole name.
    names = tuple(f"{colour} {SHAPES[list(COLOURS).index(colour) % 4]}" for colour in colours)
    for k, colour in enumerate(colours):
        x, y = random.uniform(0, 54, 2)
        dx, dy = random.uniform(-3, 3, 2)
        for t in range(8):
            rows, columns = (slice(max(0, int(a)), max(0, int(a) + 10)) for a in (y + t * dy, x + t * dx))
            frames[t, rows, columns], labels[t, rows, columns] = COLOURS[colour], k + 1
    return Scene(frames, labels, names)


SCENES = [painted(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def inputs():
    return VideoInputs(build_processor(build_tokenizer(exercises.sentences())), VIDEO)


def pixels_of(frame, name):
    """Columns and rows of a colour's pixels, found in the picture alone."""
    rows, columns = np.nonzero((frame == COLOURS[name.split()[0]]).all(-1))
    return columns, rows


def seen(frame, name):
    return len(pixels_of(frame, name)[0]) >= 20


def frame_at(film, question):
    time = re.search(r"at ([\d.]+) s", question)
    return film.frames[0 if time is None else round(float(time[1]) * film.fps)]


def middle(frame, name, axis=0):
    return (pixels_of(frame, name)[axis].mean() + 0.5) / 64


def right_by_the_pixels(film, task, question, option):
    """Whether an option is right, from the pictures; names of colours and places are all that is taken from texts."""
    frame = frame_at(film, question)
    named = [name for name in NAMES if name in question]
    everywhere = [colour for colour in COLOURS if any(seen(f, colour) for f in film.frames)]
    if task == "colour":
        return seen(film.frames[0], option) or seen(film.frames[-1], option) or option in everywhere
    if task == "name":
        return option in film.near and any(seen(f, option) for f in film.frames)
    if task == "absent":
        return option not in film.near
    if task == "count":
        return int(option) == sum(seen(frame, colour) for colour in COLOURS)
    if task in ("side", "row"):
        words = ("left", "middle", "right") if task == "side" else ("top", "middle", "bottom")
        place = middle(frame, named[0], ("side", "row").index(task))
        return option == words[int(place > 0.38) + int(place > 0.62)]
    if task == "beside":
        one, other = sorted(named, key=question.find)
        other, one = (one, other) if question.index(f"the {one}") < question.index("is the") else (other, one)
        return (option == "left") == (middle(frame, one) < middle(frame, other))
    if task == "outermost":
        places = {c: middle(frame, c) for c in COLOURS if seen(frame, c)}
        chosen = (min if "left" in question else max)(places, key=places.get)
        return option.split()[0] == chosen
    if task == "shown":
        return seen(frame, option)
    assert task == "when"
    return seen(film.frames[round(float(option.split()[0]) * film.fps)], named[0])


def test_answers_are_what_the_pixels_show():
    random, asked = Random(0), Counter()
    for _ in range(1500):
        film, exercise = draw_exercise(SCENES, random)
        right, *wrong = exercise.options
        assert len({right, *wrong}) == 1 + len(wrong) >= 2, exercise
        asked[exercise.task] += 1
        if exercise.task == "shape":
            # All shapes are painted alike: the scene's names tell.
            colour = next(c for c in COLOURS if c in exercise.question)
            assert f"{colour} {right}" in film.near, exercise
            assert not {f"{colour} {w}" for w in wrong} & film.near, exercise
        elif exercise.task == "colour":
            assert right_by_the_pixels(film, "colour", exercise.question, right), exercise
            shape = re.search("cube|ball|cylinder|cone", exercise.question)[0]
            assert [name for name in film.near if name.endswith(shape)] == [f"{right} {shape}"]
        elif film.still or exercise.task not in ("shown", "name"):
            assert right_by_the_pixels(film, exercise.task, exercise.question, right), exercise
            assert not any(right_by_the_pixels(film, exercise.task, exercise.question, w) for w in wrong), exercise
        else:
            assert right_by_the_pixels(film, exercise.task, exercise.question, right), exercise
    assert set(asked) == set(WORDINGS)
    assert min(asked.values()) > 80


def test_lists_name_what_the_pixels_show_from_left_to_right():
    random = Random(7)
    for _ in range(200):
        film, (prompt, target) = draw_list(SCENES, random)
        frame = frame_at(film, prompt)
        named = target[1:].split(", ")
        assert sorted(name.split()[0] for name in named) == sorted(c for c in COLOURS if seen(frame, c))
        places = [middle(frame, name) for name in named]
        assert places == sorted(places)
        assert set(target[1:].split(", ")) <= film.near


def test_view_by_hand():
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[10:20, 0:4] = 1  # 40 pixels; columns 0-3, rows 10-19
    labels[40, 10:25] = 2  # 15 pixels: neither seen nor away
    assert view(labels, ("red cube", "blue ball")) == ((("red cube", 2 / 64, 15 / 64),), False)
    labels[40, 10:30] = 2
    assert view(labels, ("red cube", "blue ball")).clear
    assert view(labels, ("red cube", "blue ball")).solids[1] == ("blue ball", 20 / 64, 40.5 / 64)


def test_shift_repeats_the_edge():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert films._shift(image, 1, -2).tolist() == [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]]


def test_nothing_is_asked_of_the_seven_relations():
    ours = " ".join(
        itertools.chain(*WORDINGS.values(), *exercises.DRILL_WORDINGS.values(), exercises.LIST_WORDINGS)
    ).lower()
    assert not re.search(
        r"\b(move|moved|motion|travel|went|go|shift|direction|way|far|farther|near|nearer|close|closer|distance|"
        r"camera|forward|backward|unchanged|apart|long)\b",
        ours,
    )
    theirs = set(itertools.chain(*prompts.WORDINGS.values(), prompts.PAPER_WORDINGS.values()))
    assert not theirs & set(itertools.chain(*WORDINGS.values()))
    # Films know pictures and names, no geometry.
    assert set(Scene.__dataclass_fields__) == {"frames", "labels", "names"}
    # The relations' words stand in options only where the question itself says which one is to be copied.
    random = Random(1)
    labels = {"closer", "farther", "unchanged", "forward", "backward"}
    assert not any(labels & set(draw_exercise(SCENES, random)[1].options) for _ in range(500))


def test_letters_tell_nothing():
    random = Random(2)
    questions = [pose(draw_exercise(SCENES, random)[1], "q", random) for _ in range(2000)]
    letters = Counter(question.answer for question in questions if len(question.options) == 4)
    total = sum(letters.values())
    # Four standard deviations of a binomial.
    assert all(abs(letters[letter] - total / 4) < 4 * (total * 3 / 16) ** 0.5 for letter in "ABCD"), letters


def test_drills_are_answered_by_their_options():
    random, lengths = Random(3), Counter()
    for _ in range(500):
        question = pose(draw_drill(random), "q", random)
        lengths[len(question.options)] += 1
        right = question.options[question.answer]
        assert len(set(question.options.values())) == len(question.options)
        if question.task == "letter_of":
            assert f" {right}" in question.question
        else:
            assert re.search(rf"\b{question.answer}\b", question.question)
    assert set(lengths) == {2, 3, 4, 5}


def test_stages_and_rate_by_hand():
    assert [stage.until for stage in STAGES] == [0.06, 0.45, 0.9, 1.0]
    places = {0: 0, 5: 0, 6: 1, 44: 1, 45: 2, 89: 2, 90: 3, 99: 3}
    assert {step: stage_at(step, 100) for step in places} == {step: STAGES[k] for step, k in places.items()}
    # 50 steps up and flat; once more, and from 70 % of the rest on down to 3 %.
    settings = Settings(400, 1000, 2, 1e-3, 0.05, 0, 30)
    assert [rate(step, settings) for step in (0, 400)] == pytest.approx([1 / 50, 1 / 50])
    assert [rate(step, settings) for step in (49, 399, 449, 700, 1100)] == pytest.approx([1, 1, 1, 1, 1])
    assert rate(1250, settings) == pytest.approx((1 + 0.03) / 2)
    assert rate(1400, settings) == pytest.approx(0.03)


def test_a_question_without_a_video_has_the_same_template(inputs):
    question = pose(draw_drill(Random(4)), "q", Random(4))
    row = encode_text(inputs, prompts.text_and_letter(question))
    asked, said = prompts.text_and_letter(question)
    whole = inputs.tokenizer.decode(row.tokens["input_ids"])
    assert whole == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>"
    film, _ = draw_exercise(SCENES, Random(4))
    filmed = inputs.tokenizer.decode(encode_film(inputs, film, prompts.text_and_letter(question)).tokens["input_ids"])
    assert re.sub(r"<[\d.]+ seconds><\|vision_start\|>.*<\|vision_end\|>", "", filmed) == whole
    batch = inputs.collate([row])
    assert inputs.tokenizer.decode(batch.labels[batch.labels != -100]) == f"{said}<|im_end|>"


def test_words_of_the_exercises_are_single_tokens(inputs):
    texts = [w for w in itertools.chain(*WORDINGS.values(), *exercises.DRILL_WORDINGS.values())]
    words = {
        word for text in texts for word in re.findall(r"(?<= )[a-z]+(?![a-z}])", text) if f"{{{word}}}" not in text
    }
    split = [word for word in words if len(inputs.tokenizer(f" {word}")["input_ids"]) != 1]
    assert not split


def test_a_step_depends_on_its_number_alone(inputs):
    plan = Plan(seed=5, looking=10, steps=40, batch_size=4)
    one, other = Steps(plan, SCENES, inputs), Steps(plan, SCENES, inputs)
    later = [one[step] for step in (3, 20, 30)]
    earlier = [other[step] for step in (30, 20, 3)][::-1]
    for a, b in zip(later, earlier, strict=True):
        assert torch.equal(a.batch.labels, b.batch.labels)
        assert all(torch.equal(a.batch.vision[name], b.batch.vision[name]) for name in a.batch.vision)
        assert torch.equal(a.cells.shares, b.cells.shares) if a.cells else not b.cells
    assert not torch.equal(one[20].batch.tokens["input_ids"], one[21].batch.tokens["input_ids"])


def cells_by_hand():
    kinds = np.zeros((8, 64, 64), dtype=np.uint8)
    ball, cone = 1 + NAMES.index("blue ball"), 1 + NAMES.index("pink cone")
    kinds[:4, 0:8, 16:24] = ball  # 64 pixels of half of the frames, in the first patch of the second cell
    kinds[:, 40:42, 44:56] = cone  # 2 rows, columns 44 to 55: two thirds of it in the last column of cells
    return kinds, cells(kinds)


def test_cells_by_hand():
    kinds, found = cells_by_hand()
    words = {name: shares.reshape(4, 4, -1) for name, shares in found.words.items()}
    colours, shapes = ["nothing", *COLOURS], ["nothing", *SHAPES]
    assert words["colour"][0, 1].tolist() == [float(word == "blue") for word in colours]
    assert words["shape"][0, 1].tolist() == [float(word == "ball") for word in shapes]
    # Columns 16 to 23 of 64 are left of 0.385 of the width, rows 0 to 7 above it.
    assert words["column"][0, 1].tolist() == words["row"][0, 1].tolist() == [1, 0, 0]
    # 8 pixels a frame in the third column of cells, 16 in the last: both are asked; rows 40 and 41 are below 0.615.
    for column in (2, 3):
        assert words["colour"][2, column].tolist() == [float(word == "pink") for word in colours]
        assert words["column"][2, column].tolist() == words["row"][2, column].tolist() == [0, 0, 1]
    empty = words["colour"][..., 0] == 1
    assert empty.sum() == 13
    assert not words["column"][empty].any()
    shares = found.shares.reshape(4, 4, 2, 2, 8, 9)
    assert shares[0, 1, 0, 0, :, colours.index("blue")].tolist() == [1] * 4 + [0] * 4
    assert shares[0, 1, 0, 1, :, 0].tolist() == [1] * 8
    # Columns 44 to 47 of the third cell's second patch; the last cell's first patch is crossed by both rows.
    assert shares[2, 2, 1, 1, :, colours.index("pink")].tolist() == [8 / 64] * 8
    assert shares[2, 3, 1, 0, :, colours.index("pink")].tolist() == [16 / 64] * 8
    kinds[:, 40:42, 44] = 0
    # 6 pixels in the third cell: too few to ask, too many for nothing.
    assert not any(words.reshape(4, 4, -1)[2, 2].any() for words in cells(kinds).words.values())


def test_cells_are_what_the_tokens_see(inputs):
    # Flat colours: the mean of what the processor hands to the tower tells the shares of a patch.
    random = Random(8)
    film = draw_film(SCENES, random)
    found = stack([cells(film.kinds)] * 2).shares[16:].reshape(64, 8, 9).double()
    rows = encode_film(inputs, film, prompts.Dialogue("?", "?")).vision["pixel_values_videos"]
    seen = rows.reshape(64, 3, 8, 64).double().mean(-1).transpose(1, 2)
    paint = torch.tensor([[128, 128, 128], *COLOURS.values()], dtype=torch.float64) / 127.5 - 1
    assert torch.allclose(found @ paint, seen, atol=1e-5)


def test_features_that_are_words_name_their_cells(inputs):
    model, (_, asked) = build_model(inputs.tokenizer), cells_by_hand()
    tokens, weight = vocabulary(inputs.tokenizer), model.get_output_embeddings().weight.detach()
    assert [inputs.tokenizer.decode(token) for token in tokens["row"]] == [" top", " middle", " bottom"]
    words = torch.nn.functional.normalize(weight, dim=1)
    right = sum(asked.words[name] @ words[tokens[name]] for name in WORDS)
    counts = {"nothing": (13, 13), "colour": (3, 3), "shape": (3, 3), "column": (3, 3), "row": (3, 3)}
    assert named(read(right, model), weight, tokens, asked) == counts
    assert naming_loss(30 * read(right, model), weight, tokens, asked) < 0.1
    # Without a word for it, chance: the logarithm of how many there are, as they are weighed.
    even = naming_loss(torch.zeros_like(right), weight, tokens, asked)
    assert even == pytest.approx(np.log(9) + np.log(5) + np.log(3), rel=1e-6)
    # Features are read as the model reads its last states.
    assert torch.allclose(read(right, model), model.model.language_model.norm(right), atol=1e-6)


def test_the_probe_reads_all_that_the_tower_hands_over(inputs):
    model, step = build_model(inputs.tokenizer), Steps(Plan(0, 1, 1, 3), SCENES, inputs)[0]
    with watched(model) as features:
        vision = model.model.get_video_features(
            step.batch.vision["pixel_values_videos"], step.batch.vision["video_grid_thw"]
        )
    assert torch.equal(features[0], torch.cat(list(vision.pooler_output)))
    assert [feature.shape for feature in features] == [(48, 128)] * 3
    probe = Probe(model)
    asked = step.cells.shares
    assert probe(features).shape == asked.shape == (48, 32, 9)
    torch.nn.init.zeros_(probe.colours.weight)
    torch.nn.init.zeros_(probe.colours.bias)
    assert looking_loss(probe, features, step.cells).item() == pytest.approx(np.log(9), rel=1e-6)
    assert not any(module._forward_hooks for module in mergers(model))


def weights_after(inputs, folder, stops):
    """Weights of runs that were stopped after so many steps and started anew."""
    settings = Settings(looking=2, steps=3, batch_size=2, learning_rate=1e-3, weight_decay=0.05, seed=0, scenes=30)
    for stop in stops:
        model = build_model(inputs.tokenizer, seed=0)
        for step in train(model, inputs, SCENES, settings, folder, "cpu", workers=0, every=1):
            if step == stop:
                break
    return settings, model.state_dict()


def test_an_interrupted_run_gives_the_same_weights(inputs, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    settings, whole = weights_after(inputs, tmp_path / "whole", [5])
    _, parts = weights_after(inputs, tmp_path / "parts", [1, 3, 5])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = build_model(inputs.tokenizer, seed=0).state_dict()
    assert set(whole) == set(fresh)
    assert any(not torch.equal(whole[name], fresh[name]) for name in whole)
    assert spent(tmp_path / "whole") >= 0
    other = Settings(**{**vars(settings), "seed": 1})
    with pytest.raises(InputError, match=r"checkpoint\.pt: is of .*'seed': 0.*name another --out"):
        next(train(build_model(inputs.tokenizer), inputs, SCENES, other, tmp_path / "whole", "cpu", 0))


def test_alone_the_tower_learns_and_no_word_moves(inputs, tmp_path):
    settings = Settings(2, 1, 2, 1e-3, 0.05, 0, 30)
    model, fresh = (build_model(inputs.tokenizer, seed=0) for _ in range(2))
    for step in train(model, inputs, SCENES, settings, tmp_path, "cpu", workers=0, every=1):
        if step == 2:
            break
    before, after = fresh.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "visual" in name and not name.endswith("inv_freq")}


def test_scenes_are_rendered_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 2)
    assert list(scenes.render_missing(tmp_path, 2)) == [2]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert list(scenes.render_missing(tmp_path, 2)) == [2]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    found = scenes.read_scenes(tmp_path, 2)
    again = scenes.render(1)
    assert np.array_equal(found[1].frames, again.frames)
    assert np.array_equal(found[1].labels, again.labels)
    assert found[1].names == again.names
    with pytest.raises(InputError, match=r"scenes-000002\.npz: not found"):
        scenes.read_scenes(tmp_path, 4)
    with pytest.raises(InputError, match="not a multiple of 2"):
        next(scenes.render_missing(tmp_path, 3))


def test_evaluation_counts_right_answers(inputs, monkeypatch):
    def parrot(model, inputs, rows, device, tokens=10):
        return [
            inputs.tokenizer.decode(r.tokens["input_ids"][r.prompt_length :], skip_special_tokens=True) for r in rows
        ]

    monkeypatch.setattr(evaluation, "answer", parrot)
    table = evaluation.evaluate(None, inputs, SCENES, 3, "cpu")
    assert set(table) == {*WORDINGS, *exercises.DRILL_WORDINGS}
    assert all(scores["accuracy"] == 1.0 for scores in table.values())
    monkeypatch.setattr(evaluation, "answer", lambda model, inputs, rows, device: ["?"] * len(rows))
    assert all(scores["accuracy"] == 0.0 for scores in evaluation.evaluate(None, inputs, SCENES, 3, "cpu").values())


def test_induction_heads_find_a_word_and_what_stood_before_it(inputs):
    model = build_model(inputs.tokenizer, rope_theta=ROPE_THETA)
    add_induction_heads(model)
    model.set_attn_implementation("eager")
    random, found = Random(6), []
    for _ in range(20):
        words = random.sample([*COLOURS, "left", "right", "cube", "ball"], 4)
        asked = random.randrange(4)
        text = "\n".join(["", *(f"{letter}. {word}" for letter, word in zip("ABCD", words, strict=True))])
        ids = inputs.tokenizer(f"{text} {words[asked]}<answer>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            first, second, *_ = model(input_ids=ids, output_attentions=True).attentions
        for place in range(3, ids.shape[1]):
            assert first[0, 0, place].argmax() == place - 1
            assert first[0, 1, place].argmax() == place - 2
        assert inputs.tokenizer.decode(ids[0, 3 + 4 * asked]) == f" {words[asked]}"
        # From the tag to the options' texts, two tokens after the letters.
        found.append(second[0, 0, -1, 3:19:4][asked] / second[0, 0, -1, 3:19:4].sum())
    # Of the attention to the four texts; a quarter would be chance.
    assert torch.stack(found).mean() > 0.6
