"""What is raised for a film that cannot be used."""

UNREADABLE = "unreadable file"
BAD_PIXELS = "bad pixels"


class BadFilm(Exception):
    """A film that cannot be used: `reason` in a few words, `detail` for the reader.

    The detail says what was expected, what was found and how to mend it. It never
    quotes the file: a header may name the patient.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
