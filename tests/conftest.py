"""What every test runs under: no hub, few threads, and property tests that give the same examples each time."""

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# no clock of hypothesis: on a busy machine the first examples may take long, whatever is tested
settings.register_profile("agentrl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentrl")
