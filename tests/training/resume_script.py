"""A run as a process, for tests that kill it: `resume_script.py FOLDER SECONDS_PER_BATCH`."""

import sys
import time

from toy import Batches, Counting, run_toy

SETTINGS = {"num_steps": 40, "evaluate_every": 10, "checkpoint_every": 3}


class SlowBatches(Batches):
    seconds = 0.0

    def __next__(self):
        time.sleep(self.seconds)
        return super().__next__()


class SlowCounting(Counting):
    def batches(self, split):
        return SlowBatches(self.batch_size, self.seed if split == "train" else self.seed + 1000)


if __name__ == "__main__":
    folder, seconds = sys.argv[1:]
    SlowBatches.seconds = float(seconds)
    run_toy(folder, task=SlowCounting(), **SETTINGS)
