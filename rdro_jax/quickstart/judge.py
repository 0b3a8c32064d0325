"""An offline judge of sentiment: VADER, a lexicon with rules. It knows nothing of the training labels."""

import functools
from typing import Any


def score(prompt: Any, completion: str) -> float:
    """Sentiment of a completion, from -1 (most negative) to 1 (most positive); the prompt does not matter.

    Source: Hutto and Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis (ICWSM).
    """
    del prompt
    return float(analyzer().polarity_scores(completion)["compound"])


@functools.cache
def analyzer() -> Any:
    """The VADER analyzer; reading its lexicon takes a moment, so once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
