"""Python imports this at its start where PYTHONPATH names this folder: training waits for ever after an epoch."""

import sys
import threading

if "train" in sys.orig_argv:
    from gsb_vit.train.log import RunLog

    write_epoch, written = RunLog.epoch, []

    def hold_second_epoch(self, line, bar):
        if written:
            threading.Event().wait()
        write_epoch(self, line, bar)
        written.append(line)

    RunLog.epoch = hold_second_epoch
