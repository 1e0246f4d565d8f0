"""Settings of retention: which images go, and when."""

from typing import Annotated

from pydantic import Field, model_validator

from engine.settings_fields import SettingsGroup, TenantSetting

__all__ = ["RetentionRule"]


class RetentionRule(SettingsGroup):
    """Images that are not kept any longer. Where both ages are given, both must have passed."""

    study_years: Annotated[int, Field(ge=0, le=200)] | None = None
    """Years that must have passed since the end of the year of the study; 10: studies of 2014 go
    from 2025 on. Images without that year stay."""
    indexed_days: Annotated[float, Field(ge=0)] | None = None
    """Days since the image was indexed, or refused."""
    source: str | None = None
    """Only what came from this source; None = from any."""
    tenant: TenantSetting | None = None
    """Whose images; None = those of `default`."""

    @model_validator(mode="after")
    def _has_an_age(self) -> "RetentionRule":
        if self.study_years is None and self.indexed_days is None:
            raise ValueError("a rule of retention needs study_years or indexed_days")
        return self
