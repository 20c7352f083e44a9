"""hlo-redflags: emergencies in patients' words get a notice, and what only looks like one does not."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hlo_redflags import hlo_question
from hlo_redflags.openings import openings
from hlo_redflags.rules import RULES, Rules, read
from hlo_redflags.text import misspellings, plain_words
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.red_flags import wilson
from hlo import Question, Screening, plugins
from hlo.errors import PluginError

ROOT = Path(__file__).parents[2]
DEVELOPMENT = [
    json.loads(line)
    for line in (ROOT / "tests/plugins/data/red_flags_dev.jsonl").read_text(encoding="utf-8").splitlines()
]
EMERGENCIES = [row["question"] for row in DEVELOPMENT if row["emergency"]]
OTHERS = [row["question"] for row in DEVELOPMENT if not row["emergency"]]

# One plain case for each kind, with the notice that it must get.
PLAIN = {
    "overdose": "i took 30 paracetamol an hour ago and regret it",
    "self_harm": "I'm going to kill myself tonight",
    "not_breathing": "he collapsed, not breathing, no pulse, what now",
    "choking": "Toddler choking on a grape, he is going blue!!",
    "anaphylaxis": "stung by wasp, throat closing up and hives everywhere",
    "stroke": "mums face has dropped on one side and shes talking gibberish what do i do",
    "heart": "crushing chest pain going down left arm help",
    "aorta": "known triple a 5.6 cm, now severe back pain and cold sweat",
    "breathing": "i cant breath help me",
    "unconscious": "cant wake my dad up",
    "seizure": "my wife is having a fit right now its been 6 minutes",
    "head_injury": "grandpa on clopidogrel fell on his face, got a big lump and is confused",
    "headache": "worst headache of my life came on in seconds",
    "infection": "my son has purple spots that dont go away when I press a glass on them",
    "bleeding": "cut my wrist on glass and blood is spurting, towel is soaked already",
    "gut_bleeding": "vomiting blood",
    "pregnancy": "baby hasnt moved since yesterday 36 weeks",
    "infant": "6 week old baby fever 38.4",
    "poisoning": "my 2 year old drank some bleach",
    "battery": "my toddler swallowed a button battery",
    "diabetes": "type 1, sugar 28, ketones high, vomiting since morning",
    "adrenal": "Addison's, vomiting bug, dizzy, emergency injection or wait?",
    "spine": "back pain, numb between legs and I can't pee",
    "torsion": "sudden terrible pain in left testicle woke me up, 15 yo, feel sick",
    "limb": "bone is sticking out of my sons leg",
    "vision": "suddenly cant see from one eye",
    "belly": "my whole abdomen is hard and I have 39 fever",
    "burn": "boiling water spilled over my toddlers chest",
    "heat_cold": "runner in the heat, staggering, stopped sweating, very hot",
    "injury": "my brother was stabbed",
    "withdrawal": "last drink was 2 days ago, now seeing insects on the wall and shaking",
    "chemistry": "surgery rang: my potassium is 6.4, do I have to sit in hospital all night",
    "danger": "should we ring an ambulance",
}

# What cancels, in pairs: an emergency, and nearly the same words that tell of none.
PAIRS = {
    "negation": ("purple spots that do not fade under a glass", "no purple spots, it all fades under a glass"),
    "past": ("he is having a seizure", "he had a seizure 5 years ago"),
    "chronic": ("my left arm is weak since this morning", "my left arm is sometimes weak, on and off"),
    "general": ("my dad is having a heart attack", "what is a heart attack"),
    "hypothetical": ("my wife is having a seizure", "what to do if someone has a seizure"),
    "told": ("he was stabbed in the chest", "in the novel he was stabbed in the chest"),
    "animal": (
        "my son ate mushrooms from the garden and vomits",
        "my dog ate mushrooms from the garden, vomiting",
    ),
    "over": ("mum has slurred speech now", "rehab for mum's slurred speech"),
    "figurative": ("i want to die", "dying to lose ten pounds before the wedding"),
}

# Words that cancel elsewhere must not silence these.
NOT_CANCELLED = [
    "lol my chest hurts really bad and my left arm is numb",
    "my dog died and i want to kill myself",
    "what are the signs of a stroke, my husbands face is drooping and he cant talk",
    "this is a nightmare, my son cant breathe",
    "I was watching a movie when suddenly crushing chest pain started",
    "I am a nursing student and I want to die",
    "she had surgery which went fine, now she cant breathe",
    "he had a stroke 3 years ago and today his speech is slurred again",
    "always been healthy but now i cant move my left arm",
    "no idea what to do he is not breathing",
    "no fever but purple spots that do not fade under a glass",
    "My husband has angina for years, now the chest pain does not stop for 30 minutes",
    "is it normal that my newborn is floppy and wont feed",
    "when should I call an ambulance, my dad has chest pain and is sweating",
    "she's not suicidal but she took 30 tablets",
    "MY WIFE CAN\u2019T BREATHE!!!",
]

# Each is repeated to 4,000 characters: near-matches, gaps, modifiers, and what normalisation has to work on.
ADVERSARIAL = (
    *("cant breathe ", "my chest pain ", "what is ", "no ", "if someone ", "a ", "aaaa", "(", ".", ",", "' ", "- "),
    *("took 40 pills and ", "face arm leg droop ", "slurr", "blood ~ * # <now> ", "two years ago ", "1,2.3/4"),
    *("baby not moving fever 39 . ", "fever fever fever, ", "she he she he cannot ", "\u0301", "\u0130", "\U0001f480 "),
)


def test_every_emergency_of_the_development_set_gets_a_notice() -> None:
    """The rules see all emergencies that they were made from."""
    assert [question for question in EMERGENCIES if not RULES.find(question)] == []


def test_no_other_question_of_the_development_set_gets_a_notice() -> None:
    """The rules are silent on all questions of their development set that tell of no emergency."""
    assert [question for question in OTHERS if RULES.find(question)] == []


def test_the_development_set_is_large_and_knows_the_kinds() -> None:
    """There are two hundred questions of either sort at least, and emergencies are labelled with kinds that exist."""
    assert len(EMERGENCIES) >= 200
    assert len(OTHERS) >= 200
    assert {row["kind"] for row in DEVELOPMENT if row["emergency"]} <= set(RULES.kinds)


def test_false_alarms_on_routine_questions_are_rare() -> None:
    """Fewer than 5 % of the routine questions in patients' own words get a notice."""
    data = ROOT / "benchmarks/data"
    pressing = {
        json.loads(line)["question"]
        for line in (data / "own_words_red_flags.jsonl").read_text(encoding="utf-8").splitlines()
    }
    lines = (data / "own_words_dev.jsonl").read_text(encoding="utf-8").splitlines()
    questions = {json.loads(line)["question"] for line in lines}
    assert pressing < questions
    routine = questions - pressing
    assert sum(bool(RULES.find(question)) for question in routine) < 0.05 * len(routine)


@pytest.mark.parametrize("kind", RULES.kinds)
def test_each_kind_gets_its_own_notice(kind: str) -> None:
    """A plain case of each kind gets the notice of that kind, and neither a pin nor a refusal."""
    assert hlo_question(Question(PLAIN[kind])) == Screening(notice=RULES.notice(kind))


def test_routine_questions_are_left_alone() -> None:
    """A routine question gets no screening."""
    assert hlo_question(Question("does magnesium help with cramps in calves")) is None


@pytest.mark.parametrize("why", PAIRS)
def test_what_cancels(why: str) -> None:
    """Each modifier silences the words that it reaches, and those words alone are seen."""
    emergency, other = PAIRS[why]
    assert RULES.find(emergency)
    assert RULES.find(other) == ()


@pytest.mark.parametrize("question", NOT_CANCELLED)
def test_what_does_not_cancel(question: str) -> None:
    """Words that cancel elsewhere do not silence an emergency that they do not reach."""
    assert RULES.find(question)


@pytest.mark.parametrize("kind", RULES.kinds)
def test_notices_say_whom_to_call(kind: str) -> None:
    """Every notice names the local emergency number with examples, and leaves no gap unfilled."""
    notice = RULES.notice(kind)
    assert "your local emergency number (112, 911, 999 or what it is where you are)" in notice
    assert not re.search(r"[{}\\\n]|  ", notice)


@pytest.mark.parametrize("kind", ["self_harm", "overdose"])
def test_notices_on_self_harm_name_a_crisis_line(kind: str) -> None:
    """The notices that someone in despair may read name crisis lines beside the emergency number."""
    assert "988" in RULES.notice(kind)
    assert "116 123" in RULES.notice(kind)


def test_the_most_pressing_kind_comes_first() -> None:
    """Kinds are found in the order of the file, and the first one's notice is told alone."""
    text = "my dad collapsed, he is not breathing and his lips are blue"
    found = RULES.find(text)
    assert found[0] == "not_breathing"
    assert len(found) > 1
    assert list(found) == sorted(found, key=RULES.kinds.index)
    assert RULES.screen(text) == RULES.notice("not_breathing")


def test_the_notice_on_self_harm_is_not_crowded_out() -> None:
    """Where harm is told beside the intent, both notices are told; that on overdoses covers both by itself."""
    cut = "i want to die, i cut my wrists and blood is spurting"
    assert RULES.screen(cut) == f"{RULES.notice('bleeding')}\n\n{RULES.notice('self_harm')}"
    took = "i took all my pills because i want to die"
    assert RULES.screen(took) == RULES.notice("overdose")


@pytest.mark.parametrize("question", EMERGENCIES[::10])
def test_capitals_and_typographic_apostrophes_do_not_matter(question: str) -> None:
    """A question means the same in capitals and with any apostrophe."""
    assert RULES.find(question.upper().replace("'", "\u2019")) == RULES.find(question)


@pytest.mark.parametrize(
    "question", ["my wife has a siezure now", "im suicdal", "he is unconcious", "brething is hard"]
)
def test_likely_misspellings_are_mended(question: str) -> None:
    """Likely slips in words that matter do not hide an emergency."""
    assert RULES.find(question)


@given(st.text(max_size=4000))
def test_any_text_can_be_screened(text: str) -> None:
    """No text makes the rules raise."""
    assert set(RULES.find(text)) <= set(RULES.kinds)


@given(st.lists(st.sampled_from(sorted({word for row in DEVELOPMENT for word in row["question"].split()}))))
def test_any_words_can_be_screened(words: list[str]) -> None:
    """No order of patients' words makes the rules raise."""
    assert set(RULES.find(" ".join(words))) <= set(RULES.kinds)


@pytest.mark.parametrize("part", ADVERSARIAL)
def test_long_adversarial_questions_come_to_an_end(part: str) -> None:
    """Four thousand characters of near-matches are screened; with backtracking gone wrong, it would never end."""
    assert set(RULES.find((part * 4000)[:4000])) <= set(RULES.kinds)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("ab", {"ab "}),
        ("abcdefgh", {"abcdef"}),
        ("a b c d e f", {"a b c "}),
        ("(?:a|bc)?d", {"d ", "ad ", "bcd "}),
        ("a[bc]?", {"a ", "ab ", "ac "}),
        ("[1-3x]0", {"10 ", "20 ", "30 ", "x0 "}),
        ("ab[^ ]*c", {"ab"}),
        ("a (?:[^ .]+ ){0,6}b", {"a "}),
        (r"\d\.", {f"{digit}. " for digit in range(10)}),
        (r"a[\d]", {"a"}),
        ("abcdef(?:g|h)|(?:x|y)z", {"abcdef", "xz ", "yz "}),
        ("(?:ab|(?:cd|e)?f) g", {"ab g ", "cdf g ", "ef g ", "f g "}),
    ],
)
def test_openings(pattern: str, wanted: set[str]) -> None:
    """A pattern's openings are all that a match can begin with, and no more."""
    assert openings(pattern) == wanted


@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted({word for row in DEVELOPMENT for word in row["question"].split()})),
            st.sampled_from([row["question"] for row in DEVELOPMENT]),
        ),
        max_size=12,
    )
)
def test_no_possible_concept_is_left_out(parts: list[str]) -> None:
    """What openings leave out of the search occurs nowhere else in the question."""
    text = " ".join([".", *plain_words(" ".join(parts), RULES._spelling)])
    possible = RULES._openings.possible(f"{text} ")
    found = {name: {match.start() for match in one.finditer(text)} for name, one in RULES._patterns.items()}
    assert [name for name, starts in found.items() if not starts <= set(possible.get(name, ()))] == []


def test_the_readme_tells_every_kind() -> None:
    """The README's table has the kinds of the rules, in their order."""
    readme = (ROOT / "plugins/hlo-redflags/README.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)) == RULES.kinds


def test_hlo_takes_the_plugin() -> None:
    """The entry point's module is taken as a plugin with one question hook and no specialty."""
    found = plugins.discover([EntryPoint("redflags", "hlo_redflags", plugins.GROUP)])
    assert found.refusals == ()
    assert [hook.arguments for hook in found.hooks.question] == [("question",)]


RULE = """
emergency_number = "1"
spelling = []
[spelled]
pup = "dog"
[modifiers.negated]
reach = "forward"
words = 2
phrases = ["no"]
until = ["but"]
released_by = []
[modifiers.past]
reach = "clause"
phrases = ["ago"]
released_by = ["now"]
[modifiers.old]
reach = "sentence"
phrases = ["old"]
[modifiers.told]
reach = "question"
phrases = ["novel"]
[concepts]
dog = ["dog*"]
bite = ["bit", "<jaw> ~ shut", "pup nips"]
jaw = ["jaws?"]
toy = ["toy (dog|cat)"]
[kinds.bitten]
notice = "Call {number}."
rules = [{ all = ["dog", "bite"], within = 5, unless = ["toy"] }]
[kinds.dogs]
notice = "Dogs."
ignore = ["negated"]
rules = [{ all = ["dog"], ignore = ["told"] }]
"""


@pytest.fixture(scope="module")
def small() -> Rules:
    """Rules small enough to be understood at a glance."""
    return read(RULE)


@pytest.mark.parametrize(
    ("text", "bitten"),
    [
        ("a dog bit me", True),
        ("bit by dogs", True),
        ("my pup bit me", True),
        ("a dog, then a pup nips", True),
        ("the dog , its jaws went shut", True),
        ("the dog , its jaws went , shut", False),
        ("the dog , its jaws did at once go shut", False),
        ("hotdog bit", False),
        ("a dog", False),
        ("dog one two three four bit", True),
        ("dog one two three four five bit", False),
        ("a toy dog bit me", False),
        ("no dog bit me", False),
        ("no really big dog bit me", True),
        ("no but dog bit me", True),
        ("no. A dog bit me", True),
        ("a dog bit me ages ago", False),
        ("ages ago, a dog bit me", True),
        ("a dog bit me ages ago and now", True),
        ("an old story, a dog bit me", False),
        ("old. A dog bit me", True),
        ("a dog bit me. It is in my novel", False),
    ],
)
def test_how_rules_are_met(small: Rules, text: str, bitten: bool) -> None:
    """Concepts must stand close together, outside the reach of modifiers, without what excludes them."""
    assert ("bitten" in small.find(text)) is bitten


def test_what_is_ignored_does_not_cancel(small: Rules) -> None:
    """A rule's `ignore` takes the place of its kind's."""
    assert small.find("a dog in a novel") == ("dogs",)
    assert small.find("no dog") == ()


def test_one_word_is_not_two_concepts() -> None:
    """Two concepts that begin at the same word do not meet a rule."""
    second = RULE.replace('toy = ["toy (dog|cat)"]', 'toy = ["dog"]').replace(', unless = ["toy"]', "")
    rules = read(second.replace('"bite"]', '"toy"]'))
    assert rules.find("the dog") == ("dogs",)
    assert rules.find("the dog and the dog") == ("bitten", "dogs")
    three = read(second.replace('"bite"]', '"toy", "bite"]'))
    assert three.find("the dog bit") == ("dogs",)
    assert three.find("the dog and the dog bit") == ("bitten", "dogs")


def test_the_number_stands_in_notices(small: Rules) -> None:
    """The emergency number of the file is put into the notices."""
    assert small.notice("bitten") == "Call 1."


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('unless = ["toy"]', 'unless = ["tooth"]', "lacks.*tooth"),
        ('ignore = ["told"]', 'ignore = ["sold"]', "lacks.*sold"),
        ('"<jaw> ~ shut"', '"<jar> ~ shut"', "lacks.*jar"),
        ('jaw = ["jaws?"]', 'jaw = ["<bite>"]', "holds itself"),
        ('"bit"', '"bit+"', "malformed"),
        ('"bit"', '"b**t"', "malformed"),
        ('"bit"', '"b*t"', "malformed"),
        ('"bit"', '"(bit"', "malformed"),
        ('"bit"', '" "', "malformed"),
        ('reach = "clause"', 'reach = "page"', "holds no rules"),
        ("within = 5", 'within = "near"', "holds no rules"),
        ("within = 5", "without = 5", "holds no rules"),
        ("[concepts]", "[concepts", "holds no rules"),
    ],
)
def test_malformed_rules_are_refused(old: str, new: str, says: str) -> None:
    """Rules that name what is not there, or phrases that could backtrack, are refused with what is wrong."""
    assert old in RULE
    with pytest.raises(PluginError, match=says):
        read(RULE.replace(old, new))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can't BREATHE!", ["i", "cant", "breathe", "."]),
        ("I can\u2019t - see", ["i", "cant", ",", "see"]),
        ("non-blanching rash", ["non", "blanching", "rash"]),
        ("38.5 or 38,5", ["38.5", "or", "38,5"]),
        ("20min, BP 165/110", ["20", "min", ",", "bp", "165/110"]),
        ("d\u00e9j\u00e0 vu\nnow", ["deja", "vu", ".", "now"]),
        ("tabelts", ["tablets"]),
        ("", []),
    ],
)
def test_plain_words(text: str, words: list[str]) -> None:
    """Capitals, accents, apostrophes and hyphens go; numbers, pauses and sentences' ends stay."""
    assert plain_words(text, {"tabelts": "tablets"}) == words


def test_misspellings() -> None:
    """A letter left out, doubled or swapped, or a wrong vowel, is mended; another word of the list is not touched."""
    slips = misspellings(["seizure", "seizures"])
    for slip in ("siezure", "seizre", "seizzure", "seazure"):
        assert slips[slip] == "seizure"
    assert "seizure" not in slips
    assert "eizure" not in slips


def test_wilson_interval() -> None:
    """The benchmark's interval is Wilson's (values: Newcombe 1998, Stat Med 17:857, table I, method 3)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
