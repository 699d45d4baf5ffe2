"""Kinds of messages between the processes of a deployment, and who sends them.

owner -> child, on its control channel:   CONFIG, ADD_LANE (hosts), ADD_HOST (workers), VERIFY (loader), STOP,
                                          SIZE_MODEL, LOAD_MODEL, ATTACH_MODEL, UNLOAD_MODEL, KNOW_MODEL (models by key)
child -> owner, on its control channel:   LOADED, FAILED, VERIFIED, and an answer to each of the above
owner -> worker thread, on its lane:      MODEL, ARGS, RUN, OPEN_DOOR, SHUT_DOOR (a caller asks the thread directly)
worker thread -> owner, on its lane:      META, BATCHES, RESULT, FULL_RESULT, FAILED, LOST, LATEST, DOOR_SHUT
worker thread -> host, on its lane:       MODEL, ARGS, RUN
host -> worker thread, on its lane:       META, RESULT, FAILED
"""

CONFIG, LOADED, FAILED, STOP, ADD_LANE, ADD_HOST, VERIFY, VERIFIED = range(10, 18)
SIZE_MODEL, LOAD_MODEL, ATTACH_MODEL, UNLOAD_MODEL, KNOW_MODEL = range(20, 25)
ARGS, RUN, META, RESULT, FULL_RESULT, LOST, MODEL, OPEN_DOOR, SHUT_DOOR, LATEST, DOOR_SHUT, BATCHES = range(30, 42)

#: flag of RUN: report failed examples one by one instead of failing the chunk
ISOLATE = 1
#: flag of RUN: the request has a time limit, so its batch is not to be joined with another's
ALONE = 2
#: flag of RUN: say in BATCHES, before the result, which examples were computed together
TELL_BATCHES = 4
#: flag of RUN: leave bare values as the handler gives them
AS_GIVEN = 8
