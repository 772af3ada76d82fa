"""Whether any worker has the GPUs that a job asks for."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import InvalidRequestError
from core.specs import FineTuneSpec
from models.tables import Worker


def require_gpus(session: Session, spec: FineTuneSpec) -> None:
    """Check a job that asks for several GPUs; where no worker is known, one may still come.

    Raises InvalidRequestError when every worker has fewer.
    """
    asked = spec.hone.training.gpus
    if asked == 1:
        return
    most = session.scalar(select(func.max(Worker.gpus)))
    if most is not None and most < asked:
        raise InvalidRequestError(
            f"The job asks for {asked} GPUs of one machine, and the largest of this server's workers has {most}. "
            f"Ask for at most {max(1, most)}.",
            param="hone.training.gpus",
            code="too_few_gpus",
        )
