"""The VQA accuracy and its normalisation of answers (rules: visualqa.org/evaluation)."""

from collections import Counter
import re

MIN_ANNOTATORS = 10  # with fewer, how often an answer was given says little
AGREEING = 3  # so many other annotators make an answer fully right

_NUMBERS = {word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Without those that are words of their own when the apostrophe is missing, such as "its".
_CONTRACTIONS = {word.replace("'", ""): word for word in """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't
    needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't could've i've might've must've
    should've they've we've what've when've who've would've you've he'd how'd it'd there'd they'd
    where'd who'd why'd you'd how'll it'll that'll they'll what'll who'll you'll there're they're
    what're you're he's how's let's she's somebody's someone's something's that's there's what's
    when's where's who's why's i'm ma'am o'clock y'all""".split()}
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`,?!|&%$#*^~]""")


def normalise_answer(answer):
    """The form in which answers are compared.

    Lower case; numbers to ten as digits; no articles; no full stops except before a digit; commas
    within numbers dropped, other punctuation but apostrophes and colons opened up; contractions
    with their apostrophe.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower())
    text = _PUNCTUATION.sub(" ", re.sub(r"\.(?!\d)", "", text))
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_type(answer):
    """'yes/no', 'number' or 'other', seen from a normalised answer."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"\d+(\.\d+)?", answer) else "other"


class RightAnswers:
    """What is right for one question.

    Args:
      answers: right answers and their weights.
      annotators: every answer that a person gave, [] if that is not known.

    Attributes:
      weights: normalised answer -> share of the weight.
      best: the answers of the greatest weight.
    """

    def __init__(self, answers, annotators=()):
        given = Counter()
        for answer, weight in answers:
            given[normalise_answer(answer)] += weight
        self.weights = {answer: weight / given.total() for answer, weight in given.items()}
        most = max(self.weights.values())
        self.best = [a for a, weight in self.weights.items() if weight > most - 1e-6]
        self._counts = Counter(map(normalise_answer, annotators))

    def accuracy(self, answer):
        """The VQA accuracy of a normalised answer, from 0 to 1.

        With ten annotators min(1, n/3), where n of the others gave this answer, averaged over
        leaving each of them out in turn; with fewer, the answer's share of the weight.
        """
        total, same = self._counts.total(), self._counts[answer]
        if total < MIN_ANNOTATORS:
            return self.weights.get(answer, 0.0)
        without_same, without_other = min(1, (same - 1) / AGREEING), min(1, same / AGREEING)
        return (same * without_same + (total - same) * without_other) / total
