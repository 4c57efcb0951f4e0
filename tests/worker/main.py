"""What ``celery -A`` loads in a worker of the tests."""

import os

from tests.worker import faults, shop, told

assert told.TICK_SECONDS, "its tasks are a part of the shop now"
app = shop.build(os.environ)
faults.install(os.environ.get("SHOP_FAULT", ""))
