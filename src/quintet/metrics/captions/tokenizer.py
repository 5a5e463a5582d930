"""The tokens of a caption as in coco-caption: Penn Treebank tokens in lower case, without punctuation.

The rules reproduce the Stanford PTBTokenizer of CoreNLP 3.4.1, and were found by comparing outputs. At every position
the rule with the longest match wins, context included, and the first of equally long ones. Single characters that match
no rule are tokens if they are symbols, and are dropped if that tokenizer does not know them (emoji).
"""

import re
from functools import lru_cache

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])  # brackets are kept by name
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SYMBOLS = {"¢": "cents", "£": "#", "€": "$", "¤": "$", "\x80": "$", "₠": "$", "&lt;": "<", "&gt;": ">", "&amp;": "&",
           "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}  # fmt: skip
QUOTES = {"`": "`", "‘": "`", "\x91": "`", "‹": "`", "’": "'", "\x92": "'", "›": "'",
          "“": "``", "\x93": "``", "«": "``", "”": "''", "\x94": "''", "»": "''"}  # fmt: skip
KEPT = re.compile(  # symbols that are tokens unchanged
    r"[#$%&*+/<=>@\\^_|~\xa1\xa5-\xa9\xac\xae-\xb4\xb6-\xb9\xbf×÷\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4"
    r"\u060c\u061b\u061e\u061f\u066a\u066d\u06d4\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023"
    r"\u2030-\u2038\u203b\u203e-\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114"
    r"\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e"
    r"\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
)

APOS = r"(?:['\x92’]|&apos;)"
APOS_IN_WORD = r"(?:['\x91\x92‘’`]|&apos;)"
NUMERALS = r"\xb2\xb3\xb9\xbc-\xbe\u2070\u2074-\u2079\u2080-\u2089\u2150-\u218b\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
MARKS = (
    r"[\u02c2-\u02c5\u02d2-\u02df\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0610-\u061a\u064b-\u065e\u0900-\u0903"
    r"\u093c-\u094e\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
)
PLAIN = rf"[^\W\d_{NUMERALS}\U00010000-\U0010ffff]"  # the Java tokenizer knows only characters of 16 bits
LETTER = rf"(?:{PLAIN}|{MARKS}|&[aeiouAEIOU](?:acute|grave|uml);)"
LETTER_OR_DIGIT = rf"(?:{LETTER}|\d)"
ALNUM = rf"(?:{PLAIN}|\d)"
PART = rf"(?:[dDoOlL]{APOS_IN_WORD}(?={ALNUM}{{2}}))?{ALNUM}+"

ABBREVIATIONS = (  # keep their period everywhere, in upper and lower case
    "al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd cie "
    "col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd maj "
    "mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel thu "
    "tue wed wis wyo alex ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl "
    "invt kans mich minn mlle mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept supt tenn tues "
    "univ wisc assoc attys calif comdr lieut messrs pptes pptys profs supts thurs treas"
)
OF_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # keep their period unless they are in lower case
SENTENCE_STARTS = (  # after a single letter with a period, which then loses it
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once "
    "One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
BEFORE_NUMBERS = "art ca figs? nos? op pp prop"
WITH_APOSTROPHE = "dunkin' somethin' ol' 'em 'till 'til 'cause 'n' c'est c'mon cap'n e'er ev'ry li'l nat'l s'mores"


def _any_of(words: str) -> str:
    longest_first = sorted(words.split(), key=len, reverse=True)
    return "(?:" + "|".join(longest_first).replace("'", APOS) + ")"


RULES = [  # group 1, if any, is the token; the context after it counts for the length of the match
    rf"([A-Za-z]*[A-MO-Za-mo-z])(?i:n{APOS_IN_WORD}t)",  # do|n't
    r"(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me)",
    r"(?i:('t)(?:is|was))",
    rf"(?i:n{APOS_IN_WORD}t)(?!{LETTER})",
    rf"({LETTER}{LETTER_OR_DIGIT}*){APOS}(?i:[msd]|re|ve|ll)",  # man|'s
    rf"((?i:{APOS}(?:[msd]|re|ve|ll)))(?:[^A-Za-z]|$)",
    rf"(?i:{_any_of(WITH_APOSTROPHE)})",
    r"(')[A-Za-z]\S",  # an opening quote
    rf"(?i:{APOS}(?:[msd]|re|ve|ll|n))",
    # words and their parts
    rf"{LETTER}{LETTER_OR_DIGIT}*(?:[.!?]{LETTER}{LETTER_OR_DIGIT}*)*",
    rf"[A-HJ-XZn]{APOS_IN_WORD}{LETTER}{{2,}}",
    rf"{LETTER}+[aeiouyAEIOUY]{APOS_IN_WORD}[aeiouA-Z]{LETTER}*",
    rf"[dDlLjJ]{APOS}",
    rf"([yY]{APOS}){LETTER}",
    rf"{APOS}(?:\d\d(?=[\s,;.:!?)]|$)|[2-9]0s)",
    rf"{PART}(?:[-_\u058a\u2010\u2011]{PART})*",
    r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[A-Z]+(?:(?:\+|&amp;|&)[A-Z]+)+",
    r"[cC]\+\+|[cCfF]#",
    # numbers: 1,000.5 12:30 (800) 555-1212 1-1/2
    r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
    r"(?:\(\d{2,3}\) ?|(?:\+\+?)?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}",
    r"(?:\d{1,4}-)?\d{1,4}(?:\\?/|\u2044)\d{1,4}",
    # abbreviations with their period
    r"[A-Za-z](?:\.[A-Za-z])+\.",
    rf"[A-Za-z]\.(?!\s+{_any_of(SENTENCE_STARTS + ' ' + SENTENCE_STARTS.upper())}(?!\S))",
    r"Ph\.D\.",
    rf"(?i:{_any_of(ABBREVIATIONS)}|{_any_of(BEFORE_NUMBERS)}(?=\.\s?\d))\.",
    rf"(?:{_any_of(OF_STATES + ' ' + OF_STATES.upper())})\.",
    r"(?i:anti|pro)-",
    # money, names, mail addresses, URLs, tags, emoticons
    r"[A-Z]*\$",
    r"@[A-Za-z_][A-Za-z_0-9]*",
    rf"#{LETTER}+",
    r"<?[A-Za-z0-9][^\s\"<>|(){}@]*@(?:[^\s\"<>|(){}.@]+\.)*[^\s\"<>|(){}.@]+>?",
    r"https?://[^\s\"<>|(){}]+[^\s\"<>|.!?(),;{}-]",
    r"(?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:[A-Za-z][A-Za-z0-9]*\.)+(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(),;{}-])?",
    r"</?[A-Za-z!?][\w -]*(?:[\w -]+=(?:\w+|\"[^\"]*\"))*/?>",
    r"&[aeiouAEIOU](?:acute|grave|uml);|&#\d+;|&(?:lt|gt|amp|quot|nbsp);",
    r"[<>]?[:;=][-o*']?[()DdPpO\\{@|\[\]](?![A-Za-z0-9])",
    r"\^_\^|-_-|>_<",
    r"[\x91-\x94‘’“”`«»‹›]{2}",
    # a period before other punctuation is part of its word; runs of punctuation
    rf"({LETTER_OR_DIGIT}(?:[-.\w]*\w)?\.)(?:[;:]|,(?![A-Za-z0-9]))",
    r"(?:\. ){2}\.|\.{3,}|[!?]+|-{5,}|-{2,4}|@@|<<|>>|\*+|#+|_+|''|``",
]
COMPILED = [re.compile(rule) for rule in RULES]
SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])
PERIODS = frozenset(ABBREVIATIONS.split()) | frozenset(OF_STATES.lower().split())
SIMPLE = re.compile(  # fast path for most of a caption: plain words, commas, the last period
    r"\s*(?:([A-Za-z]{2,})(?:,|(\.)(?=\s*$))?(?=\s|$)|[.,]+(?=\s|$)(?<!\.\.))"
)


def tokenize(text: str) -> list[str]:
    """Tokens of one caption in lower case: separate clitics (man 's, do n't), brackets by name (-lrb-), no punctuation.

    A number that the Java tokenizer writes with a space in it (3 1/2) is two tokens, as in coco-caption's BLEU and
    CIDEr. Each caption is tokenized by itself, while in the Java tokenizer the next line may decide whether a letter at
    the end keeps its period.
    """
    return list(_tokens(text))


@lru_cache(maxsize=1 << 17)
def _tokens(text: str) -> tuple[str, ...]:
    text = re.sub(r"\xad|\s+$", "", text)
    found, position = [], 0
    while position < len(text):
        simple = SIMPLE.match(text, position)
        word = (simple[1] or "").lower() if simple else ""
        if simple and word not in SPLIT and not (simple[2] and word in PERIODS):
            found.append(word)
            position = simple.end()
        elif text[position].isspace():
            position += 1
        else:
            token, position = _longest(text, position)
            found += _normal(token)
    return tuple(token for token in found if token and token not in DROPPED)


def _longest(text: str, start: int) -> tuple[str, int]:
    """The token at `start`, and its end."""
    best, end = 0, start + 1
    for rule in COMPILED:
        match = rule.match(text, start)
        if match and match.end() - start > best:
            best, end = match.end() - start, match.end(match.lastindex or 0)
    return text[start:end], end


def _normal(token: str) -> list[str]:
    """The normalized form of a token; empty for a character that is not a token."""
    lower = token.lower()
    if lower in SYMBOLS:
        return [SYMBOLS[lower]]
    if len(token) == 1:
        kept = KEPT.match(token) or re.match(LETTER_OR_DIGIT, token)
        return [BRACKETS.get(token, lower if kept else "")]
    if re.fullmatch(rf"n{APOS_IN_WORD}t|{APOS}(?:[mstd]|re|ve|ll)", lower) or QUOTES.keys() >= set(lower):
        return ["".join(QUOTES.get(char, char) for char in lower.replace("&apos;", "'"))]
    if lower in ("&nbsp;", "&quot;") or token in ("---", "----") or set(token) <= {".", " "}:
        return []
    for bracket in "()":
        lower = lower.replace(bracket, BRACKETS[bracket])
    return lower.replace("&amp;", "&").split()
