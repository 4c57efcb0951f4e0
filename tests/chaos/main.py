"""What ``celery -A`` loads in a worker of a chaos world."""

from tests.chaos.app import Config, build, prepare_worker

config = Config.from_environ()
app = build(config)
prepare_worker(config)
