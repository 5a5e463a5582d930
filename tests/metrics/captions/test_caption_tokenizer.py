"""The tokeniser against what the Java tokeniser of coco-caption answered."""

import gzip
import hashlib
import zipfile

import pytest
from commands import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.metrics.captions.tokenizer import DROPPED, tokenize

DATA = REPOSITORY.parent / "shared/data"
FLICKR8K, MULTI30K = DATA / "flickr8k/Flickr8k_text.zip", DATA / "multi30k/raw/train.en.gz"

# our own sentences; the words are the output of stanford-corenlp-3.4.1.jar (PTBTokenizer -preserveLines -lowerCase) of
# pycocoevalcap 1.2 without the punctuation that coco-caption drops; no Java is needed to run this
GOLDEN = [
    ("A man's dog isn't wearing the boys' hats.", "a man 's dog is n't wearing the boys hats"),
    (
        "Two men, one with a T-shirt and jeans; the other in a red-and-white jersey!",
        "two men one with a t-shirt and jeans the other in a red-and-white jersey",
    ),
    (
        "I'm sure they've seen what we'd call a \"dog\" -- or 'cat' -- haven't they?",
        "i 'm sure they 've seen what we 'd call a dog or cat have n't they",
    ),
    (
        "You cannot tell whether he's gonna jump, wanna bet? Gimme that!",
        "you can not tell whether he 's gon na jump wan na bet gim me that",
    ),
    ("'Tis a rock 'n' roll band of the '80s, at 9 o'clock.", "'t is a rock 'n' roll band of the '80s at 9 o'clock"),
    ("Hook 'em, said O'Neill, ma'am; c'mon, y'all!", "hook 'em said o'neill ma'am c'mon y' all"),
    (
        "St. Bernard dogs on 5th Ave. with Mr. and Mrs. Smith Jr., of Washington D.C.",
        "st. bernard dogs on 5th ave. with mr. and mrs. smith jr. of washington d.c.",
    ),
    ("Dr. Seuss's books, e.g. at 5 p.m. in the U.S.", "dr. seuss 's books e.g. at 5 p.m. in the u.s."),
    (
        "A woman (in blue) [left] holds {two} cups",
        "a woman -lrb- in blue -rrb- -lsb- left -rsb- holds -lcb- two -rcb- cups",
    ),
    (
        "10,000 people, 3.5 miles, 50% off for $2.50, #1 and number 5's fan",
        "10,000 people 3.5 miles 50 % off for $ 2.50 # 1 and number 5 's fan",
    ),
    (
        "It costs £5 or €5 or 50¢ at 12:30 on 12/25/2004, 1/2 of 3 1/2",
        "it costs # 5 or $ 5 or 50 cents at 12:30 on 12/25/2004 1/2 of 3 1/2",
    ),
    ("Texas A&M and R&B, salt&pepper, cats & dogs, AT&amp;T", "texas a&m and r&b salt & pepper cats & dogs at&t"),
    ("wait... what.. no.... yes . . . ok…", "wait what no yes ok"),
    (
        "A black/white 3-year-old boy w/ a 4x4 and/or a t-shirt/jeans",
        "a black/white 3-year-old boy w / a 4x4 and/or a t-shirt/jeans",
    ),
    ("a dog – running — fast - very--fast --- ok ----- no", "a dog running fast very fast ok ----- no"),
    ("“Curly quotes”, ‘single’ and dog’s don’t, ``tick''", "curly quotes single and dog 's do n't tick"),
    ("Un café naïve, Zoë's über-cool Straße, 日本 犬's", "un café naïve zoë 's über-cool straße 日本 犬 's"),
    (
        "smile :) or :-( and ;P at www.example.com/dogs, see http://a.bc/d?e=f. Mail a.b@c.org!",
        "smile :-rrb- or :--lrb- and ;p at www.example.com/dogs see http://a.bc/d?e=f mail a.b@c.org!",
    ),
    ("emoji 😀 dog👍🏽 ❤️ ♥ ½ cup 20°C ™", "emoji dog ❤ ♥ 1/2 cup 20 ° c ™"),
    (
        "#hashtag1 and @user_1 under_score _x_ * ** a*b ~ ^ |",
        "#hashtag 1 and @user_1 under_score _ x _ * ** a * b ~ ^ |",
    ),
    ("Player No. 5 and no. 7; the answer is no.", "player no. 5 and no. 7 the answer is no"),
    ("plan B. The dog and plan B. A dog, vitamin C.", "plan b the dog and plan b a dog vitamin c."),
    ("yes!! what?! no?? hello!World a.b,c;d", "yes !! what ?! no ?? hello!world a.b c ;d"),
    (
        "they'rea it'sa dog'scat don'ts 's 'll n't shouldn't've",
        "they rea it sa dog scat do n'ts 's 'll n't should n't 've",
    ),
    ("<b>bold</b> 5 > 3 < 7 & &quot;x&quot; it&apos;s", "<b> bold </b> 5 > 3 < 7 & x it 's"),
    ("(800) 555-1212 +5 -5 5-10 1980's 1990s 5'10\" 6ft", "-lrb-800-rrb- 555-1212 +5 -5 5-10 1980 's 1990s 5 10 6ft"),
    (
        "C++ C# jack-o'-lantern hors d'oeuvres Xi'an l'homme Dunkin' somethin'",
        "c++ c# jack-o lantern hors d'oeuvres xi'an l'homme dunkin' somethin'",
    ),
    ("tab\tand  spaces", "tab and spaces"),
]


@pytest.mark.parametrize(("caption", "words"), GOLDEN)
def test_words_are_those_of_the_java_tokeniser(caption, words):
    assert tokenize(caption) == words.split()


@pytest.mark.parametrize(
    ("caption", "words"), [("", []), (" \n\t", []), (".,;: ? !", []), ("\U0001f600", []), ("A", ["a"])]
)
def test_nothing_is_no_word(caption, words):
    assert tokenize(caption) == words


def test_a_caption_may_have_lines():
    assert tokenize("Two dogs\nrun .\r\n") == ["two", "dogs", "run"]


@pytest.mark.skipif(not FLICKR8K.is_file(), reason="shared/data/flickr8k is not on this machine")
def test_every_caption_of_flickr8k():
    """The digest is of the Java tokeniser's answers to the 35,455 captions, a line each."""
    with zipfile.ZipFile(FLICKR8K) as archive:
        lines = archive.read("Flickr8k.token.txt").decode().rstrip("\n").split("\n")
    assert (
        digest(line.split("\t")[1] for line in lines)
        == "b2128b696994be951f485f3df9bf7bda7d7ac46452a924de0d905b6467048893"
    )


@pytest.mark.skipif(not MULTI30K.is_file(), reason="shared/data/multi30k is not on this machine")
def test_every_english_caption_of_multi30k():
    """29,000 captions, against the Java tokeniser's answers."""
    lines = gzip.decompress(MULTI30K.read_bytes()).decode().rstrip("\n").split("\n")
    assert digest(lines) == "65ce04ce76ec3a9ee1a6114228f28d60807880aa4155fbee50475de85d547aa0"


def digest(captions) -> str:
    return hashlib.sha256("\n".join(" ".join(tokenize(caption)) for caption in captions).encode()).hexdigest()


@settings(max_examples=200, deadline=None)
@given(st.text(st.one_of(st.sampled_from("aAzn'’`\".,-!?&;:/()[]<>@#$%0129 \t"), st.characters()), max_size=40))
def test_any_text_has_words(text):
    words = tokenize(text)
    assert not any(word in DROPPED or not word or word != "".join(word.split()) for word in words)
    assert words == tokenize(f"  {text}\n")


@given(st.lists(st.sampled_from(["two", "dogs", "run", "on", "the", "grass", "near", "cannot", "gonna", "a"])))
def test_plain_words_are_themselves(words):
    assert "".join(tokenize(" ".join(words))) == "".join(words)
