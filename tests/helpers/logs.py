"""Messages that the package logs, for tests."""

import logging

PACKAGE = logging.getLogger("advcam_attr")


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def record_log() -> list[str]:
    """Return a list that fills with what the package logs, until `stop_recording`."""
    recorder = _Recorder()
    PACKAGE.addHandler(recorder)
    PACKAGE.setLevel(logging.INFO)
    return recorder.messages


def stop_recording() -> None:
    for handler in [h for h in PACKAGE.handlers if isinstance(h, _Recorder)]:
        PACKAGE.removeHandler(handler)
    PACKAGE.setLevel(logging.NOTSET)
