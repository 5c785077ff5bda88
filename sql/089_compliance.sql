-- Meta's compliance callbacks. A deletion request names a person by the app's own id for them; where that is also the id a Page
-- knows them by, they are erased there. Of the others nothing can be found here by that id.

create or replace function convsync_api.request_deletion(p_app_user_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_code text := replace(gen_random_uuid()::text, '-', '');
  v_now timestamptz := convsync_api._now();
  v_page text;
  v_contacts integer := 0;
begin
  if coalesce(p_app_user_id, '') = '' then
    raise exception 'the request names nobody' using errcode = 'ZC003', hint = 'user_id';
  end if;
  for v_page in
    select p.page_id
    from convsync.pages p
    where exists (
      select from convsync.messenger_conversations c where c.page_id = p.page_id and c.sender_id = p_app_user_id)
    order by p.page_id
  loop
    perform convsync_api.erase_contact(v_page, p_app_user_id);
    v_contacts := v_contacts + 1;
  end loop;
  insert into convsync.deletion_requests (confirmation_code, person_digest, requested_at, completed_at, contacts)
  values (v_code, convsync_api._contact_digest('', p_app_user_id), v_now, convsync_api._now(), v_contacts);
  return convsync_api.deletion_status(v_code);
end
$$;
comment on function convsync_api.request_deletion(text) is
$c$Meta's data-deletion callback: erases the person wherever a Page knows them by this id, records the request and returns it:
confirmation_code, requested_at, completed_at, contacts (how many were erased). Errors: ZC003.$c$;

create or replace function convsync_api.deletion_status(p_confirmation_code text)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_request convsync.deletion_requests;
begin
  select r.* into v_request from convsync.deletion_requests r where r.confirmation_code = p_confirmation_code;
  if not found then
    raise exception 'there is no such request' using errcode = 'ZC001';
  end if;
  return jsonb_build_object('confirmation_code', v_request.confirmation_code, 'requested_at', v_request.requested_at,
    'completed_at', v_request.completed_at, 'contacts', v_request.contacts);
end
$$;
comment on function convsync_api.deletion_status(text) is
  'What became of a deletion request, by its confirmation code; nothing in it tells who asked. Errors: ZC001.';
