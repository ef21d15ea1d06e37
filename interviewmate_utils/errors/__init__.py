"""Eight categories of error in an answer, their subtypes, and the signals by which they are found (see data/GUIDELINE.md)."""

CATEGORIES = {
    "hallucination": ("factual inaccuracy", "concept confusion", "domain misunderstanding"),
    "generic": ("over-general", "unspecific", "template-like"),
    "technical error": ("misapplied concept", "confused terms", "misunderstood process"),
    "length mismatch": ("too short", "too long", "inconsistent"),
    "incomplete": ("truncated", "missing component", "partial coverage"),
    "repetitive": ("words", "phrases", "content"),
    "off-topic": ("question misread", "context confused", "irrelevant"),
    "format": ("structure", "style", "presentation"),
}
OF_FORM = ("length mismatch", "incomplete", "repetitive", "format")  # to be seen without knowing the subject
