"""What ``celery -A`` loads in a worker of the tests."""

import os

from tests.worker import faults, shop

app = shop.build(os.environ)
faults.install(os.environ.get("SHOP_FAULT", ""))
