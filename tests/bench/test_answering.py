"""What is answered, in batches that share clips, is what each prompt by itself would give."""

import pytest
import torch
from torch.testing import assert_close

from mllm4d.bench.answering import Generation
from mllm4d.bench.encoding import TextInputs, answer_tokens, text_prompt
from mllm4d.bench.likelihood import LetterLikelihood, TextLikelihood
from mllm4d.bench.prefix import common_length, groups_of
from mllm4d.bench.rows import Option, Row, batches
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.bench.suites.ost_bench import OSTBench
from mllm4d.bench.suites.records import CHOICE, RELATIVE, BenchQuestion
from mllm4d.models.base import BaseModel
from mllm4d.models.inputs import VideoSettings
from mllm4d.schema import InputError
from tests.models import tiny_families

FAMILIES = ["qwen3", "qwen25", "qwen2", "qwen35", "internvl", "smolvlm", "llava_onevision", "gemma3"]
SHARING = set(FAMILIES) - {"qwen35", "gemma3"}
"""The others have recurrent states, or windows."""

# Three questions about the first clip, one about the second, two about the third; all of other lengths.
CLIPS = {8: ["Where is it?", "Which way did the red cube go in the end?", "How far?"], 4: ["Where?"], 6: ["A B?", "C"]}


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    made = {}

    def loaded(name):
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        if name not in made:
            base = BaseModel(str(tiny_families.build(name, tmp_path_factory.mktemp("models") / name)))
            model, processor = base.load()
            if name == "qwen3":  # flat logits would hide everything; the others' are large already
                with torch.no_grad():
                    for key, parameter in model.named_parameters():
                        if parameter.ndim > 1 and "language_model" in key:
                            parameter.mul_(1.5)
            made[name] = model.eval(), base.inputs(model, processor, VideoSettings())
        return made[name]

    return loaded


def prompts_of(inputs, name):
    found = []
    for count, questions in CLIPS.items():
        frames = 8 if name == "llava_onevision" else count
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 256, (frames, 56, 56, 3), generator=generator, dtype=torch.uint8)
        ids = [f"{count}/{n}" for n in range(len(questions))]
        found += inputs.encode(pixels, torch.arange(frames) / 4, 4.0, questions, None, ids)
    return found


def count_clips(model, inputs, name):
    """How many clips go through the vision tower."""
    seen = []

    def note(module, args, kwargs):
        found = [inputs.family.features(inputs.processor, {k: v for k, v in kwargs.items() if v is not None})]
        if name.startswith("qwen"):
            grid = kwargs.get("video_grid_thw")
            found = [0 if grid is None else len(grid)]
        seen.append(found[0])

    return seen, model.register_forward_pre_hook(note, with_kwargs=True)


def by_itself(model, inputs, prompt, limit):
    """transformers' own ``generate``, without a batch."""
    batch = inputs.collate([prompt], side="left").model_inputs()
    tokens = model.generate(**batch, max_new_tokens=limit, do_sample=False)
    return inputs.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def answers_of(way, model, inputs, rows, done=()):
    return [answer for batch in way.answer(model, inputs, rows, done) for answer in batch]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [2, 16])
def test_greedy_answers_of_shared_clips_are_those_of_each_prompt_alone_in_transformers(name, size, loaded):
    model, inputs = loaded(name)
    prompts = prompts_of(inputs, name)
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts)]
    way = Generation(max_new_tokens=12, batch_size=size)
    found = {answer.number: answer.text for answer in answers_of(way, model, inputs, rows)}
    assert found == {number: by_itself(model, inputs, prompt, 12) for number, prompt in enumerate(prompts)}
    assert len(set(found.values())) > 3
    assert way._shares == (name in SHARING)


@pytest.mark.parametrize("name", ["qwen3", "qwen25"])
def test_each_clip_goes_through_the_vision_tower_once_for_all_its_questions(name, loaded):
    model, inputs = loaded(name)
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts_of(inputs, name))]
    for way in (Generation(4, batch_size=2), LetterLikelihood(batch_size=2)):
        seen, hook = count_clips(model, inputs, name)
        letters = tuple(Option(key, torch.tensor([k + 20]), 1) for k, key in enumerate("AB"))
        answers = answers_of(way, model, inputs, [Row(row.number, row.prompt, letters) for row in rows])
        hook.remove()
        assert len(answers) == 6
        assert sum(seen) == 3


def options_of(inputs, texts):
    tokens = answer_tokens(inputs, "Where?", texts, "q")
    return tuple(Option(key, said, len(text)) for key, said, text in zip("ABCD", tokens, texts, strict=False))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("texts", [["left", "to the right", "forward", "0.5 m"], ["A", "B", "C", "D"]])
def test_likelihoods_are_those_of_a_plain_forward_of_prompt_and_option(name, texts, loaded):
    model, inputs = loaded(name)
    prompts, options = prompts_of(inputs, name), options_of(inputs, texts)
    rows = [Row(number, prompt, options) for number, prompt in enumerate(prompts)]
    way = TextLikelihood(batch_size=2)
    for answer in answers_of(way, model, inputs, rows):
        prompt, sums = prompts[answer.number], {}
        for option in options:
            ids = torch.cat([prompt.tokens["input_ids"], option.tokens])
            more = {k: torch.cat([v, v.new_zeros(len(option.tokens))]) for k, v in prompt.tokens.items()}
            tokens = {k: v[None] for k, v in {**more, "input_ids": ids}.items()}
            with torch.no_grad():
                logits = model(**tokens, **prompt.vision, attention_mask=torch.ones_like(ids)[None]).logits[0]
            log_probs = logits.float().log_softmax(-1)[len(prompt.tokens["input_ids"]) - 1 : -1]
            sums[option.key] = float(log_probs.gather(1, option.tokens[:, None]).sum())
        found = answer.details["log_likelihood"]
        tolerance = 1e-3 if name == "qwen35" else 2e-5
        assert_close(torch.tensor(list(found.values())), torch.tensor(list(sums.values())), rtol=0, atol=tolerance)
        per_character = {key: sums[key] / length for key, length in answer.details["characters"].items()}
        assert answer.text == max(per_character, key=per_character.get)
        assert answer.details["characters"] == {o.key: len(t) for o, t in zip(options, texts, strict=True)}


def test_a_long_option_is_not_lost_for_its_length_alone(loaded):
    """lm-evaluation-harness's acc_norm: the sum over tokens by the characters; acc would take the short one."""
    model, inputs = loaded("qwen3")
    options = options_of(inputs, ["left", "to the right of the red cube"])
    (answer,) = answers_of(TextLikelihood(), model, inputs, [Row(0, prompts_of(inputs, "qwen3")[0], options)])
    sums = answer.details["log_likelihood"]
    assert sums["A"] > sums["B"]
    assert sums["A"] / 4 < sums["B"] / 28
    assert answer.text == "B"


def test_what_is_said_may_be_said_is_tokenised_as_in_training_without_the_end(loaded):
    _, inputs = loaded("qwen3")
    frames, times = torch.zeros(8, 56, 56, 3, dtype=torch.uint8), torch.arange(8) / 4
    for target in ("B", " left", "0.5 m"):
        (record,) = inputs.encode(frames, times, 4.0, ["Where?"], [target], ["q"])
        (tokens,) = answer_tokens(inputs, "Where?", [target], "q")
        assert torch.equal(tokens, record.tokens["input_ids"][record.prompt_length : -1])
    with pytest.raises(InputError, match="an option has no text"):
        answer_tokens(inputs, "Where?", ["left", ""], "q")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_without_its_clip_is_answered_as_plain_text(name, loaded):
    model, inputs = loaded(name)
    words = ["Where is it?", "Which way did the red cube go in the end?", "How far?"]
    if name == "smolvlm":  # whose processor, as it is built here, has a template for videos alone
        with pytest.raises(InputError, match=r"chat template.*'model.text_only' asks for them"):
            text_prompt(inputs, words[0], "q")
        return
    prompts = [text_prompt(inputs, text, text) for text in words]
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts)]
    way = Generation(8, batch_size=2)
    found = {answer.number: answer.text for answer in answers_of(way, model, TextInputs(inputs), rows)}
    for number, text in enumerate(words):
        turns = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        options = {"add_generation_prompt": True, **inputs.family.template_options}
        rendered = inputs.processor.apply_chat_template(turns, tokenize=False, **options)
        ids = torch.tensor([inputs.tokenizer(rendered, add_special_tokens=False)["input_ids"]])
        more = {"token_type_ids": torch.zeros_like(ids)} if name == "gemma3" else {}
        tokens = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **more, max_new_tokens=8, do_sample=False
        )
        assert found[number] == inputs.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)


def test_rows_that_end_early_change_nothing_for_the_others(loaded):
    model, inputs = loaded("qwen3")
    prompts = prompts_of(inputs, "qwen3")
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts)]
    plain = answers_of(Generation(24, batch_size=8), model, inputs, rows)
    # A token that some say early and others late or never, as an end.
    said = [inputs.tokenizer(answer.text, add_special_tokens=False)["input_ids"] for answer in plain]
    early = next(t for t in said[0] if any(t not in other for other in said))
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, early]
    try:
        found = {a.number: a for a in answers_of(Generation(24, batch_size=8), model, inputs, rows)}
        alone = {n: by_itself(model, inputs, prompt, 24) for n, prompt in enumerate(prompts)}
    finally:
        model.generation_config.eos_token_id = before
    assert {n: a.text for n, a in found.items()} == alone
    assert {a.details["truncated"] for a in found.values()} == {True, False}


def test_drawn_answers_depend_on_the_question_and_the_seed_alone(loaded):
    model, inputs = loaded("qwen3")
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts_of(inputs, "qwen3"))]

    def said(some, **settings):
        way = Generation(8, temperature=1.0, **settings)
        return {answer.number: answer.text for answer in answers_of(way, model, inputs, some)}

    whole = said(rows)
    assert said(rows[::-1], batch_size=1) == whole
    assert said(rows[2:3]) == {2: whole[2]}
    assert said(rows, seed=1) != whole


def test_batches_keep_clips_together_and_lengths_apart_and_do_not_depend_on_what_is_done(loaded):
    model, inputs = loaded("qwen3")
    prompts = prompts_of(inputs, "qwen3")
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts)]
    assert groups_of(prompts) == [[0, 1, 2], [3], [4, 5]]
    numbers = [[[row.number for row in group] for group in batch] for batch in batches(rows, 3)]
    # Clips of 8, 6 and 4 frames: longest first; three questions are a batch of their own.
    assert numbers == [[[0, 1, 2]], [[4, 5], [3]]]
    assert [[len(g) for g in batch] for batch in batches(rows, 2)] == [[3], [2], [1]]
    way = Generation(2, batch_size=3)
    left = list(way.answer(model, inputs, rows, done={0, 1, 2, 4}))
    assert [[answer.number for answer in batch] for batch in left] == [[5, 3]]


def test_the_common_start_leaves_every_prompt_a_token_of_its_own(loaded):
    _, inputs = loaded("qwen3")
    prompts = prompts_of(inputs, "qwen3")
    same = [prompts[0], prompts[0]]
    assert common_length(same) == len(prompts[0].tokens["input_ids"]) - 1
    shared = common_length(prompts[:3])
    videos = prompts[0].tokens["input_ids"] == inputs.family.placeholder(inputs.processor)
    assert int(videos.nonzero().max()) < shared < min(len(p.tokens["input_ids"]) for p in prompts[:3])


def question(options, id="q"):
    right = frozenset({next(iter(options))}) if options else frozenset()
    scoring = CHOICE if options else RELATIVE
    return BenchQuestion(id, "v.mp4", "Where?", options, right, None if options else 1.0, scoring, "all")


def test_likelihood_refuses_what_has_no_options_or_no_letters():
    suite, good = CustomSuite(), question({"A": "left", "B": "right"})
    LetterLikelihood().check(suite, [good])
    with pytest.raises(InputError, match=r"1 of 2 questions of the user's suite have no options .* first 'bare'"):
        TextLikelihood().check(suite, [good, question({}, "bare")])
    hidden = question({"#1": "left", "#2": "right"})
    TextLikelihood().check(OSTBench(), [hidden])
    with pytest.raises(InputError, match=r"shows its options without letters \('#1' is none\)"):
        LetterLikelihood().check(OSTBench(), [hidden])


def test_prompts_and_targets_of_the_ways_of_answering():
    suite, asked = CustomSuite(), question({"A": "left", "B": "to the right"})
    assert LetterLikelihood().prompt(suite, asked) == suite.prompt(asked)
    assert LetterLikelihood().targets(asked) == {"A": "A", "B": "B"}
    way = TextLikelihood(delimiter=" ")
    assert way.prompt(suite, asked) == "Where?\nA. left\nB. to the right\nAnswer with the text of the right option."
    assert way.targets(asked) == {"A": " left", "B": " to the right"}
    assert [way.characters(asked, key) for key in "AB"] == [4, 12]
    assert Generation().targets(asked) == {}


def test_settings_that_make_no_sense_are_refused():
    for settings, words in [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is below 1"),
        ({"temperature": -1.0}, "temperature: -1.0 is below 0"),
        ({"top_p": 0.5}, "say nothing without a temperature"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
    ]:
        with pytest.raises(InputError, match=words):
            Generation(**settings)


def test_the_ways_are_named_and_tell_what_decides_their_answers():
    assert Generation().name == "generation (greedy)"
    assert Generation(temperature=0.7).name == "generation (temperature 0.7)"
    assert Generation(batch_size=1).describe() == Generation(batch_size=9).describe()
    assert Generation(temperature=0.7, seed=1).describe() != Generation(temperature=0.7).describe()
    assert LetterLikelihood().describe() != TextLikelihood().describe() != TextLikelihood(" ").describe()
