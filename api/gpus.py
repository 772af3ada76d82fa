"""Whether any worker has the GPUs that a job asks for."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import InvalidRequestError
from models.tables import Worker


def require_gpus(session: Session, asked: int) -> None:
    """Raises InvalidRequestError when every worker that is known has fewer; where none is known, one may still come."""
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
