"""Kinds of messages between the processes of a deployment, and who sends them.

owner -> child, on its control channel:   CONFIG, ADD_LANE (hosts), ADD_HOST (workers), VERIFY (loader), STOP
child -> owner, on its control channel:   LOADED, FAILED, VERIFIED, HOST_TAKEN
owner -> worker thread, on its lane:      ARGS, RUN
worker thread -> owner, on its lane:      META, RESULT, FULL_RESULT, FAILED, LOST
worker thread -> host, on its lane:       ARGS, RUN
host -> worker thread, on its lane:       META, RESULT, FAILED
"""

CONFIG, LOADED, FAILED, STOP, ADD_LANE, ADD_HOST, VERIFY, VERIFIED = range(10, 18)
ARGS, RUN, META, RESULT, FULL_RESULT, LOST = range(30, 36)

#: flag of RUN: report failed examples one by one instead of failing the chunk
ISOLATE = 1
#: flag of RUN: the request has a time limit, so its batch is not to be joined with another's
ALONE = 2
