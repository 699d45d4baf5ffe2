"""Dates, times and decimal numbers into bytes, by the encoding of `wire`."""

from __future__ import annotations

import struct
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from kit.daemon.encoder import Encoder


def write_datetime(encoder: Encoder, value: datetime) -> None:
    """A datetime, with its time zone and fold."""
    key = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else ""
    encoder.head += b"D"
    encoder.text((value.replace(tzinfo=None) if key else value).isoformat())
    encoder.text(f"{key} {value.fold}")


def write_time(encoder: Encoder, value: time) -> None:
    """A time of day."""
    encoder.head += b"h"
    encoder.text(value.isoformat())
    encoder.head += bytes([value.fold])


def write_date(encoder: Encoder, value: date) -> None:
    """A date."""
    encoder.head += b"e"
    encoder.text(value.isoformat())


def write_timedelta(encoder: Encoder, value: timedelta) -> None:
    """A length of time."""
    encoder.head += b"m" + struct.pack("<qqq", value.days, value.seconds, value.microseconds)


def write_decimal(encoder: Encoder, value: Decimal) -> None:
    """A decimal number, with all its digits."""
    encoder.head += b"c"
    encoder.text(str(value))
