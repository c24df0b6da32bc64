"""Signing in by an OpenID Connect provider: there and back again. Authlib makes and checks state, nonce and PKCE.

Authlib is imported where it is used: sites without a provider start half a second sooner.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from app.accounts import identities
from app.accounts.pages import browser_of, enter
from app.config import Settings
from app.db import SessionMaker
from app.errors import NotFound, RankloopError, Unavailable
from app.web import SessionDep, SettingsDep, local_path

if TYPE_CHECKING:
    from authlib.integrations.starlette_client import StarletteOAuth2App

router = APIRouter()
log = logging.getLogger(__name__)
VISIT_COOKIE = "rl_visit"
PATH = "/sign-in/provider"


class ProviderAway(Unavailable):
    """The OpenID provider does not answer. Try again in a moment, or sign in with a password or a one-time link."""


def make_provider(settings: Settings) -> StarletteOAuth2App | None:
    """The client of the provider in the settings, if there is one."""
    if not settings.oidc_issuer:
        return None
    from authlib.integrations.starlette_client import OAuth

    provider: StarletteOAuth2App = OAuth().register(
        "provider",
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        server_metadata_url=f"{settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256"},
    )
    return provider


def provider_of(request: Request) -> StarletteOAuth2App:
    """The provider's client.

    Raises:
        NotFound: none is set.
    """
    provider: StarletteOAuth2App | None = request.app.state.provider
    if provider is None:
        raise NotFound("This site has no OpenID provider.")
    return provider


@router.get(PATH)
async def go(
    request: Request, session: SessionDep, settings: SettingsDep, way_back: Annotated[str, Query(alias="next")] = "/"
) -> Response:
    """Public: off to the provider. What proves the way back is kept here; the browser has only a secret to it."""
    from authlib.integrations.base_client.errors import OAuthError

    provider = provider_of(request)
    kept: dict[str, Any] = {}
    request.scope["session"] = kept
    try:
        back = f"{settings.public_url.rstrip('/')}{PATH}/back"
        answer: Response = await provider.authorize_redirect(request, back)
    except (httpx2.HTTPError, OAuthError) as error:
        raise away(error) from error
    secret = secrets.token_urlsafe(32)
    await identities.remember_visit(session, secret=secret, data={"session": kept, "way": local_path(way_back)})
    life, is_secure = int(identities.VISIT_LIFE.total_seconds()), settings.has_secure_cookies
    answer.set_cookie(VISIT_COOKIE, secret, life, path=PATH, httponly=True, samesite="lax", secure=is_secure)
    return answer


@router.get(f"{PATH}/back")
async def come_back(request: Request, settings: SettingsDep) -> RedirectResponse:
    """Public: back from the provider. The visit is over with the first try; no connection waits for the provider."""
    provider = provider_of(request)
    sessionmaker: SessionMaker = request.app.state.sessionmaker
    async with sessionmaker.begin() as session:
        visit = await identities.end_visit(session, request.cookies.get(VISIT_COOKIE))
    request.scope["session"] = visit["session"]
    claims = await checked_claims(request, provider, settings)
    async with sessionmaker.begin() as session:
        token = await identities.sign_in(session, claims, **browser_of(request))
    answer = enter(settings, token, visit["way"])
    answer.delete_cookie(VISIT_COOKIE, path=PATH)
    return answer


async def checked_claims(request: Request, provider: StarletteOAuth2App, settings: Settings) -> dict[str, Any]:
    """Who the provider says it is: signature, issuer, audience, times, nonce and state were checked.

    Raises:
        VisitEnded: the answer is not to our question, or was used before.
        ProviderAway: the provider does not answer.
    """
    from authlib.integrations.base_client.errors import OAuthError
    from joserfc.errors import JoseError

    try:
        claims: dict[str, Any] = dict((await provider.authorize_access_token(request))["userinfo"])
    except httpx2.HTTPError as error:
        raise away(error) from error
    except (OAuthError, JoseError, KeyError, ValueError) as error:
        log.warning("an answer of the OpenID provider was refused: %s", type(error).__name__)
        raise identities.VisitEnded from error
    if str(claims.get("iss", "")).rstrip("/") != settings.oidc_issuer.rstrip("/"):
        raise identities.VisitEnded
    return claims


def away(error: Exception) -> RankloopError:
    """What a visitor is told; the cause is in the log."""
    log.error("the OpenID provider does not answer: %s", type(error).__name__)
    return ProviderAway()
