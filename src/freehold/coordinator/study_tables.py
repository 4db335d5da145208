"""The tables of studies: who offers data, schedules, runs, rounds, contributions, measures, and the small blobs among them."""

from __future__ import annotations

import sqlalchemy as sa

from freehold.coordinator.schema import metadata

_RUN, _HEX, _NAME = sa.String(32), sa.String(64), sa.String(63)

offers = sa.Table(
    "offers",
    metadata,
    sa.Column("node", _NAME, primary_key=True),
    sa.Column("datasets", sa.Text, nullable=False),  # names, a comma between them
    sa.Column("seen", sa.Double, nullable=False, server_default="0"),  # last, by any of several coordinators
    sa.Column("sandbox", sa.String(16), nullable=False, server_default=""),  # as the node says
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("digest", sa.String(71), primary_key=True),  # of the plan
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("plan", _HEX, nullable=False),  # blob: the plan as TOML
    sa.Column("signature", sa.Text, nullable=True),
    sa.Column("state", sa.String(16), nullable=False),  # running, finished, stopped, failed
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("ended", sa.Double, nullable=True),
    sa.Column("reason", sa.String(2000), nullable=True),  # of stopped and failed
    sa.Column("by", sa.String(100), nullable=False, server_default="operator"),  # who started it: role/name; operator: the socket
)

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("study", sa.String(71), sa.ForeignKey(studies.c.digest), primary_key=True),
    sa.Column("every_s", sa.Double, nullable=False),  # from one cycle's beginning to the next
    sa.Column("times", sa.Integer, nullable=True),  # cycles in all; null: until the study is stopped
    sa.Column("cycle", sa.Integer, nullable=False),  # index of the cycle that began last
    sa.Column("due", sa.Double, nullable=False),  # when the next one begins at the earliest
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", _RUN, primary_key=True),
    sa.Column("study", sa.String(71), sa.ForeignKey(studies.c.digest), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # waiting, training, measuring, resting, finished, stopped
    sa.Column("round", sa.Integer, nullable=False),  # rounds closed; the index of the open one
    sa.Column("server", _HEX, nullable=True),  # blob
    sa.Column("shared", _HEX, nullable=True),  # blob
    sa.Index("ix_runs_study", "study"),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("run", _RUN, sa.ForeignKey(runs.c.id), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("cohort", sa.Text, nullable=False),  # names, a comma between them
    sa.Column("population", sa.Integer, nullable=False),
    sa.Column("opened", sa.Double, nullable=False),
    sa.Column("deadline", sa.Double, nullable=False),
    sa.Column("closed", sa.Double, nullable=True),
    sa.Column("heard", sa.Integer, nullable=True),
    sa.Column("weight", sa.Double, nullable=True),
)

contributions = sa.Table(
    "contributions",
    metadata,
    sa.Column("run", _RUN, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("node", _NAME, primary_key=True),
    sa.Column("sha256", _HEX, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("received", sa.Double, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=True),  # while the round is open; of small ones
    sa.Column("place", sa.String(80), nullable=True),  # the same of others: a name in the blob folder
    sa.Column("counted", sa.Boolean, nullable=True),  # null while the round is open
    sa.Column("sandbox", sa.String(16), nullable=False, server_default=""),  # it was trained in, as the node says
    sa.Column("summed", sa.Integer, nullable=True),  # the round in whose sum it is; a later one if rounds are asynchronous
    sa.Index("ix_contributions_summed", "run", "summed"),
)

measures = sa.Table(
    "measures",
    metadata,
    sa.Column("run", _RUN, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("node", _NAME, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),  # JSON: sums per split, or why there are none
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("sha256", _HEX, primary_key=True),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=True),  # small ones; one write to the disk instead of three
    sa.Column("place", sa.String(80), nullable=True),  # others: the name in the blob folder or bucket, never used twice
)
