"""Kinds of frames between kernels, the daemon and deployments, and what each one's body holds."""

from __future__ import annotations

#: Changes when frames, or what they hold, do.
VERSION = 7

#: kernel -> daemon (-> deployment): a dict, see `hello.hello`.
HELLO = 1
#: deployment -> kernel, with the ring: the dict of `Served.status`, and what came of the hello.
#: worker -> kernel, over a direct line: its ring.
WELCOME = 2
#: Instead of WELCOME or an answer, or at any time with number 0 as the last word: an error.
ERROR = 3
#: deployment -> kernel, with the ring: send the handler.
NEED_HANDLER = 4
#: kernel -> deployment: the pickled handler, settings, a sample.
HANDLER = 5
#: kernel -> deployment: (isolate, deadline_s, batch_timeout_s, inference_args, deaths, tell_batches), examples.
#: kernel -> worker, over a direct line: when it was sent (monotonic seconds), examples.
RUN = 6
#: deployment -> kernel: failures by index, a count of pieces, and (indices, plain, model ids), values of each;
#: where they were asked for, the batches that were computed: (indices, seconds) of each.
ANSWER = 7
#: kernel -> deployment: drop the request of this number.
CANCEL = 8
#: kernel -> deployment: name of a method, its arguments as a dict; and back: its result.
CALL = 9
REPLY = 10
#: deployment -> kernel, unasked, with number 0: role, pid, text of a line that a serving process printed.
PRINTED = 12
#: daemon -> deployment: a HELLO's dict, with the connection that it came over.
CONNECTION = 11
#: daemon -> deployment: somebody has asked for its end.
STOP = 13
#: kernel -> deployment: this kernel waits for one request after the other, and would rather ask a worker directly.
ASK_DIRECT = 14
#: deployment -> kernel: a direct line's socket, and (examples, bytes) of a request over it at most.
DIRECT = 15
#: worker -> kernel, over a direct line: it ends here, and for no trouble.
GOODBYE = 16
