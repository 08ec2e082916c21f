"""The one exception whose message is written for the user; errors of a full disk."""

import errno


class UserError(ValueError):
    """Bad input. The message names the field, says what was wrong and what to do.

    The launcher prints it without a traceback and exits with status 2.
    """


# What the system says where there is no room: no space, over the quota, over the limit of a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
